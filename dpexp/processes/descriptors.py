"""File descriptors that a process passes to others: to the workers that it starts, or through Unix sockets."""

import os
import socket
import struct
from multiprocessing import reduction
from typing import Any


class Descriptor:
    """A file descriptor, closed when nothing refers to it.

    Pickling passes a duplicate, so it works only while a worker process is being started.
    """

    fd = -1  # if it isn't open, or belongs to another owner

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        """Close it in this process."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __del__(self) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        assert self.fd >= 0, "pickled after close"
        return _rebuild, (type(self), reduction.DupFd(self.fd))


def is_of_this_user(connection: socket.socket) -> bool:
    """Whether the process at the other end of a Unix socket belongs to this process's user."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return bool(struct.unpack("3i", credentials)[1] == os.getuid())


def _rebuild(kind: type[Descriptor], duplicate: Any) -> Descriptor:
    return kind(duplicate.detach())
