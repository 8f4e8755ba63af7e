"""The fork server that workers are forked from, and the life of a worker process around its target."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import connection, forkserver, resource_tracker
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil

from dpexp.errors import DpexpError, PeerError, WorkerError, one_line
from dpexp.machine.environment import modified_environment
from dpexp.processes import signals
from dpexp.processes.heartbeat import Slot

# Imported once, by the server that workers are forked from: a worker then starts in a tenth of a second.
# torch imports symbolic_shapes, with sympy, at the first `backward` to which a gradient is passed.
PRELOAD = """torch torch.fx.experimental.symbolic_shapes numpy numpy.ma pydantic psutil
dpexp.processes.fork_server dpexp.training.worker""".split()
SOMETIMES = ("torch._dynamo",)  # what only some jobs need, and takes half as long as torch
FREEZE = "dpexp.processes.freeze"  # when all is imported

# In a worker this is the fork server, if the preload worked.
IMPORTED_BY = os.getpid()

PR_SET_PDEATHSIG = 1  # of Linux's prctl
OUT_OF_MEMORY_SCORE = 500  # of 1000

Target = Callable[..., Any]
"""Called in each process as target(rank, *arguments[rank], notify); returns the report of that process."""


@dataclass(frozen=True)
class Failure:
    """A worker's message that its target has raised an error."""

    message: str
    details: str
    secondary: bool  # the failure of another rank is the cause


def start_server(imports: Iterable[str] = SOMETIMES) -> ForkServerContext:
    """The fork server with its preloaded imports; started on the first call, which does not wait for it.

    A worker that needs others than these `imports` finds them itself when it starts, which takes longer.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOAD, *imports, FREEZE])
    single = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    # The server's imports must find what this process finds, and make no pool of threads: a forked
    # worker would inherit it broken.
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    resource_tracker.ensure_running()  # which unblocks them: so not within
    with modified_environment(PYTHONPATH=path, **single), signals.blocked():  # in the server, for good
        forkserver.ensure_running()
    return context


def cpu_seconds() -> float:
    """CPU seconds of the fork server and, on Linux, of all its workers that have ended."""
    process = getattr(getattr(forkserver, "_forkserver", None), "_forkserver_pid", None)
    if process is None:
        return 0.0
    try:
        times = psutil.Process(process).cpu_times()
    except psutil.Error:  # it has died
        return 0.0
    return sum(getattr(times, name, 0.0) for name in ("user", "system", "children_user", "children_system"))


def start_process(
    context: ForkServerContext, rank: int, target: Target, arguments: tuple[Any, ...], slot: Slot
) -> tuple[ForkServerProcess, connection.Connection]:
    """A new worker, and the connection for its messages. Raises OSError, or WorkerError when the server has died."""
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(
        target=_main, args=(target, rank, arguments, sender, slot), name=f"dpexp-{rank}", daemon=True
    )
    try:
        with _main_module_hidden():
            process.start()
    except EOFError as error:
        raise WorkerError(f"rank {rank} can't be started: the fork server has died") from error
    finally:
        sender.close()
    return process, receiver


def _main(target: Target, rank: int, arguments: tuple[Any, ...], sender: connection.Connection, slot: Slot) -> None:
    """The whole life of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group: the parent decides
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals.STATUS)
    _die_with_parent()
    _die_before_others()
    slot.take()
    try:
        report = target(rank, *arguments, lambda value: sender.send(("notice", value)))
        sender.send(("report", report))
    except BaseException as error:  # whatever it is, the parent must know
        message = str(error) if isinstance(error, DpexpError) else one_line(error)
        with contextlib.suppress(OSError):
            sender.send(("failure", Failure(message, traceback.format_exc(), isinstance(error, PeerError))))
        sender.close()
        os._exit(1)


def _die_with_parent() -> None:
    """End this process when the main process dies, of which the fork server's children get no notice.

    A thread does it. On Linux the kernel does it, too, even if this process is stopped or stuck in C code: the fork
    server exits with the main process as soon as no worker holds the pipe by which it knows its clients.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    alive = getattr(getattr(forkserver, "_forkserver", None), "_forkserver_alive_fd", None)
    if sys.platform == "linux" and alive is not None:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.close(alive)


def _die_before_others() -> None:
    """When memory runs out, Linux shall kill a worker, whose end is reported, and not the process that reports it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OUT_OF_MEMORY_SCORE))


@contextlib.contextmanager
def _main_module_hidden() -> Iterator[None]:
    """Keep workers from running the main program a second time, as multiprocessing would have them do."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
