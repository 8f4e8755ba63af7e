"""One measurement at a time on a machine: simultaneous measurements would distort each other.

The lock is an abstract Unix socket: it leaves no file, and the kernel frees it when its process ends, however it ends.
It holds for all users of a network namespace, so usually for a machine or a container.
"""

import contextlib
import errno
import hashlib
import os
import socket
import struct
from collections.abc import Callable, Iterator

LOCK_VARIABLE, DEFAULT = "DPEXP_LOCK", "dpexp"


@contextlib.contextmanager
def measurement_lock(on_wait: Callable[[int], None]) -> Iterator[None]:
    """Let no other dpexp on this machine measure while the context is open.

    While another one does, wait until it has ended; `on_wait` receives its process id. The environment variable
    DPEXP_LOCK names a different lock; if it is empty, there is no lock.
    """
    name = os.environ.get(LOCK_VARIABLE, DEFAULT)
    if not name:
        yield
        return
    address = f"\0dpexp/{hashlib.sha256(name.encode()).hexdigest()}"  # hashed: at most 107 bytes are allowed
    while True:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as lock:
            try:
                lock.bind(address)
                lock.listen(128)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                yield
                return
        _wait(address, on_wait)


def _wait(address: str, on_wait: Callable[[int], None]) -> None:
    """Return when the process with the lock may have released it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as waiting:
        try:
            waiting.connect(address)
        except ConnectionRefusedError:
            return
        process, _, _ = struct.unpack("3i", waiting.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        on_wait(process)
        with contextlib.suppress(ConnectionResetError):
            waiting.recv(1)  # never arrives: returns when the lock's process has ended
