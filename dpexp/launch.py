"""Processes: start a group, watch every member, fail fast with the root cause, leave nothing behind."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import connection, forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from types import ModuleType
from typing import Any

from dpexp.environment import modified_environment
from dpexp.errors import DpexpError, PeerError, WorkerError, one_line

# Imported once, by the server that workers are forked from: a worker then starts in a tenth of a second.
PRELOAD = [
    "torch",
    "torch._dynamo",
    "numpy",
    "numpy.ma",
    "pydantic",
    "psutil",
    "dpexp.launch",
    "dpexp.worker",
    "dpexp.frozen",
]

# In a worker this is the fork server, if the preload worked.
IMPORTED_BY = os.getpid()

CAUSE_SECONDS = 1.0  # how long a failure that another one explains waits for that one

Target = Callable[..., Any]
"""Called in each process as target(rank, *arguments[rank], notify); returns that process's report."""


@dataclass(frozen=True)
class _Failure:
    message: str
    details: str
    secondary: bool  # another member's failure is the cause


def launch(
    target: Target,
    arguments: list[tuple[Any, ...]],
    on_notice: Callable[[Any], None],
    first_rank: int = 0,
    abort: connection.Connection | None = None,
) -> list[Any]:
    """Run `target` in one new process for each entry of `arguments`; return their reports by rank.

    `on_notice` hears what rank 0 passes to its `notify`. Raises WorkerError with the first cause as soon as any
    process fails, or when a message comes from `abort`; whatever happens, no process of the group outlives this call.
    Where others start ranks too, `first_rank` is the first of these.
    """
    context = start_server()
    members: list[ForkServerProcess] = []
    pipes: list[connection.Connection] = []
    try:
        for rank, own in enumerate(arguments, first_rank):
            receiver, sender = context.Pipe(duplex=False)
            pipes.append(receiver)
            member = context.Process(target=_main, args=(target, rank, own, sender), name=f"dpexp-{rank}", daemon=True)
            with _main_module_hidden():
                member.start()
            members.append(member)
            sender.close()
        return _collect(members, pipes, on_notice, first_rank, abort)
    finally:
        for member in members:
            if member.exitcode is None:
                member.kill()
        for member in members:
            member.join()
            member.close()
        for pipe in pipes:
            pipe.close()


def _collect(
    members: list[ForkServerProcess],
    pipes: list[connection.Connection],
    on_notice: Callable[[Any], None],
    first_rank: int,
    abort: connection.Connection | None,
) -> list[Any]:
    """Wait for one report from each member; raise on the first that fails or dies without one."""
    reports: dict[int, Any] = {}
    secondary: WorkerError | None = None
    waiting = {pipe: number for number, pipe in enumerate(pipes)}
    while waiting:
        ready = connection.wait([*waiting, *([abort] if abort else [])], CAUSE_SECONDS if secondary else None)
        if secondary and not ready:
            raise secondary
        for pipe in ready:
            assert isinstance(pipe, connection.Connection)
            if pipe is abort:
                raise WorkerError(pipe.recv())
            number = waiting[pipe]
            rank = first_rank + number
            try:
                kind, value = pipe.recv()
            except (EOFError, OSError):
                raise WorkerError(f"rank {rank} {_death(members[number])}") from None
            if kind == "notice":
                on_notice(value)
                continue
            del waiting[pipe]
            if kind == "report":
                reports[number] = value
            elif value.secondary:
                secondary = secondary or PeerError(f"rank {rank} failed: {value.message}", value.details)
            else:
                raise WorkerError(f"rank {rank} failed: {value.message}", value.details)
    if secondary:
        raise secondary
    return [reports[number] for number in range(len(members))]


def _death(member: ForkServerProcess) -> str:
    """How a process that closed its pipe without a report has ended."""
    member.join(timeout=1)
    code = member.exitcode
    if code is None:
        return "closed its connection without a report"
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"exited with status {code} without a report"


def _main(target: Target, rank: int, arguments: tuple[Any, ...], sender: connection.Connection) -> None:
    """The whole life of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent decides
    _die_with_parent()
    try:
        report = target(rank, *arguments, lambda value: sender.send(("notice", value)) if rank == 0 else None)
        sender.send(("report", report))
    except BaseException as error:  # whatever it is, the parent must hear of it
        message = str(error) if isinstance(error, DpexpError) else one_line(error)
        with contextlib.suppress(OSError):
            sender.send(("failure", _Failure(message, traceback.format_exc(), isinstance(error, PeerError))))
        sender.close()
        os._exit(1)


def _die_with_parent() -> None:
    """End this process when the main process dies: the fork server's children aren't told."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def _main_module_hidden() -> Iterator[None]:
    """Workers don't run the program that started us a second time, as multiprocessing would have them do."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def wait_for_server() -> None:
    """Return when the fork server has imported everything and starts workers at once."""
    launch(_nothing, [()], lambda notice: None)


def _nothing(rank: int, notify: Any) -> None:
    """What a worker does whose start is all that matters."""


def start_server() -> ForkServerContext:
    """The fork server with everything imported; started on the first call, which does not wait for it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    single = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    # The server's imports must find what this process finds, and make no pool of threads: a forked
    # worker would inherit it broken.
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    with modified_environment(PYTHONPATH=path, **single):
        forkserver.ensure_running()
    return context
