"""The fork server that workers are forked from, and the entry point of worker processes."""

import contextlib
import functools
import multiprocessing
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable
from multiprocessing import connection, forkserver, resource_tracker
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil

from dpexp.errors import DpexpError, PeerError, WorkerError, one_line
from dpexp.machine import signals
from dpexp.machine.environment import THREAD_VARIABLES, modified_environment
from dpexp.processes.heartbeat import HeartbeatMemory

# Imported once, by the server that workers are forked from: a worker then starts in a tenth of a second.
# torch imports symbolic_shapes, with sympy, at the first `backward` to which a gradient is passed.
PRELOAD = """torch torch.fx.experimental.symbolic_shapes numpy numpy.ma pydantic psutil
dpexp.processes.fork_server dpexp.train.worker""".split()
# Needed by some strategies and models only; dynamo takes half as long as torch.
PRELOADED_FOR = {"ddp": "torch._dynamo", "resnet18": "torchvision.models"}
SERVER_SETUP = "dpexp.processes.server_setup"  # when all is imported

OUT_OF_MEMORY_SCORE = 500  # out of 1000

Target = Callable[..., Any]
"""Called in each process as target(rank, *its arguments, notify); returns the report of that process."""


def start_server(names: Iterable[str] = PRELOADED_FOR) -> None:
    """Start the fork server, without waiting. The first call decides what it imports for these strategies and models.

    Workers of others import the rest themselves when they start, which takes longer.
    """
    imports = {PRELOADED_FOR[name] for name in names if name in PRELOADED_FOR}
    forkserver.set_forkserver_preload([*PRELOAD, *sorted(imports), SERVER_SETUP])
    single = dict.fromkeys(THREAD_VARIABLES, "1")
    # The server's imports must find what this process finds, and make no pool of threads: a forked
    # worker would inherit it broken.
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    resource_tracker.ensure_running()  # it unblocks signals, so not inside `block`
    with modified_environment(PYTHONPATH=path, **single), signals.block():  # in the server, for good
        forkserver.ensure_running()


def server_pid() -> int:
    """Return the process id of the fork server; 0 if it was not started."""
    return forkserver._forkserver._forkserver_pid or 0  # type: ignore[attr-defined]


def cpu_seconds() -> float:
    """Return the CPU seconds of the fork server and of all its workers that have ended."""
    try:
        return sum(psutil.Process(server_pid()).cpu_times()[:4])  # the last two are its workers'
    except psutil.Error:  # it was not started, or has died
        return 0.0


def start_process(
    target: Target, rank: int, arguments: tuple[Any, ...], monitor: HeartbeatMemory
) -> tuple[ForkServerProcess, connection.Connection]:
    """Start a worker; return it and the connection for its messages. Raises OSError, WorkerError.

    The messages are ("notice", what the target passed to `notify`), ("warning", text), ("report", what it returned),
    and ("failure", WorkerError).
    """
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    of_main = (target, rank, arguments, monitor, sender)
    process = context.Process(target=_main, args=of_main, name=f"dpexp-{rank}", daemon=True)
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")  # else the worker would run the main program a second time
    try:
        process.start()
    except EOFError as error:
        raise WorkerError(f"rank {rank} can't be started: the fork server has died") from error
    finally:
        sys.modules["__main__"] = main
        sender.close()
    return process, receiver


def _main(target: Target, rank: int, arguments: tuple[Any, ...], monitor: HeartbeatMemory, sender: Any) -> None:
    """Run the target in a worker process, from its start to its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group: the parent decides
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals.STATUS)
    _die_with_parent()
    with contextlib.suppress(OSError):  # if memory runs out, the kernel should kill a worker, not the main process
        Path("/proc/self/oom_score_adj").write_text(str(OUT_OF_MEMORY_SCORE))
    monitor.publish()
    lock = threading.Lock()  # any thread may warn

    def send(kind: str, value: Any) -> None:
        with lock:
            sender.send((kind, value))

    def warn(message: Warning | str, category: type[Warning], filename: str, line: int, *_: Any, **__: Any) -> None:
        with contextlib.suppress(OSError):
            send("warning", f"{filename}:{line}: {category.__name__}: {message}")

    warnings.showwarning = warn  # type: ignore[assignment]
    try:
        send("report", target(rank, *arguments, functools.partial(send, "notice")))
    except BaseException as error:  # whatever it is, the parent must know
        message = str(error) if isinstance(error, DpexpError) else one_line(error)
        kind = PeerError if isinstance(error, PeerError) else WorkerError
        with contextlib.suppress(OSError):
            send("failure", kind(message, traceback.format_exc()))
        sender.close()
        os._exit(1)


def _die_with_parent() -> None:
    """End this process when the main process dies, even if it is stopped then, or stuck in C code.

    The fork server ends with the main process if no worker holds its alive pipe open; the kernel then kills the
    workers.
    """
    signals.set_parent_death_signal(signal.SIGKILL)
    os.close(forkserver._forkserver._forkserver_alive_fd)  # type: ignore[attr-defined]
    parent = multiprocessing.parent_process()
    assert parent is not None
    if not parent.is_alive():  # it died before the kernel was told
        os._exit(1)
