"""A group of worker processes: start it, watch every member, fail fast with the root cause, leave nobody behind."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.context import ForkServerProcess
from typing import Any

import psutil

from dpexp import cgroups, interrupts, position
from dpexp.errors import PeerError, WorkerError
from dpexp.server import Target, start_process, start_server

CAUSE_SECONDS = 1.0  # how long a failure that another one explains waits for that one


@dataclass(frozen=True)
class Elsewhere:
    """The ranks of a group that other processes start."""

    first_rank: int  # of those that are started here
    abort: connection.Connection  # a message there ends the launch
    tell_progress: Callable[[Any], Any]  # is told where the ranks here are; what it returns changes as others get on


def launch(
    target: Target,
    arguments: list[tuple[Any, ...]],
    on_notice: Callable[[Any], None],
    timeout_seconds: float = math.inf,
    elsewhere: Elsewhere | None = None,
) -> list[Any]:
    """Run `target` in one new process for each entry of `arguments`; return their reports by rank.

    `on_notice` hears what rank 0 passes to its `notify`. Raises WorkerError with the first cause as soon as any
    process fails, or when no process gets on for `timeout_seconds`; whatever happens, no process of the group outlives
    this call.
    """
    interrupts.check()
    with interrupts.postponed() as pending:  # neither half of a request nor a worker shall be left
        group = _Members(len(arguments), 0 if elsewhere is None else elsewhere.first_rank)
        try:
            for number, own in enumerate(arguments):
                group.start(target, number, own)
            reports = _collect(group, on_notice, timeout_seconds, elsewhere, pending)
        finally:
            group.end()
    if reports is None:
        raise WorkerError("interrupted")  # by a signal whose handler didn't raise
    return reports


class _Members:
    """The processes of one launch, and what is known of them."""

    def __init__(self, size: int, first_rank: int) -> None:
        self.context = start_server()
        self.first_rank = first_rank
        self.board = position.Board(size)
        self.processes: list[ForkServerProcess] = []
        self.pipes: list[connection.Connection] = []
        self._memory_kills = cgroups.memory_kills()

    def start(self, target: Target, number: int, own: tuple[Any, ...]) -> None:
        """Start one process."""
        process, pipe = start_process(self.context, self.first_rank + number, target, own, self.board.seats[number])
        self.processes.append(process)
        self.pipes.append(pipe)

    def end(self) -> None:
        """Nobody is left, and nothing of what was theirs."""
        for process in self.processes:
            if process.exitcode is None:
                process.kill()
        for process in self.processes:
            process.join()
            process.close()
        for pipe in self.pipes:
            pipe.close()
        self.board.close()

    def where(self, number: int) -> str:
        """A rank by its number, and where it stands."""
        return f"rank {self.first_rank + number} {self.board.positions[number]}"

    def death(self, number: int) -> WorkerError:
        """How a process that closed its pipe without a report has ended."""
        process = self.processes[number]
        process.join(timeout=1)
        code = process.exitcode
        if code is None:
            how = "closed its connection without a report"
        elif code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        else:
            how = f"exited with status {code} without a report"
        lost_server = 255  # what multiprocessing says when nobody saw the end
        if code in (-signal.SIGKILL, lost_server) and cgroups.memory_kills() > self._memory_kills:
            how += f", probably out of memory ({_memory_in_words()})"
        message = f"rank {self.first_rank + number} {how}, {self.board.positions[number]}"
        return WorkerError(message, self.board.stacks()[number])

    def hang(self, seconds: float) -> WorkerError:
        """That nobody has got on for so long, with the stacks of all."""
        stopped = [_is_stopped(process.pid) for process in self.processes]
        states = [
            self.where(number) + (", stopped by a signal" if stopped[number] else "")
            for number in range(len(self.processes))
        ]
        alive = [process.pid if process.exitcode is None else None for process in self.processes]
        # The stopped ones last: they go on for that, and others with them.
        self.board.ask_for_stacks([None if stopped[number] else pid for number, pid in enumerate(alive)])
        stacks = self.board.ask_for_stacks([pid if stopped[number] else None for number, pid in enumerate(alive)])
        details = [f"{state}:\n{stack or 'wrote no stack'}" for state, stack in zip(states, stacks, strict=True)]
        return WorkerError(
            f"no worker got on for {seconds:g} s: {'; '.join(states)}; "
            "if that is no hang, raise launch.timeout_seconds",
            "\n".join(details),
        )


class _Patience:
    """How long nobody has got on: while this process was itself held up, no time counts."""

    def __init__(
        self, board: position.Board, timeout_seconds: float, tell_progress: Callable[[Any], Any] | None = None
    ) -> None:
        self.poll_seconds = min(1.0, timeout_seconds / 4) if timeout_seconds < math.inf else None
        self._board, self._timeout_seconds, self._tell_progress = board, timeout_seconds, tell_progress
        self._seen, self._looked, self._idle_seconds = self._state(), time.monotonic(), 0.0

    def over(self) -> bool:
        """Whether it has been too long."""
        if self.poll_seconds is None:
            return False
        now, state = time.monotonic(), self._state()
        self._idle_seconds += min(now - self._looked, 2 * self.poll_seconds)
        if state != self._seen:
            self._seen, self._idle_seconds = state, 0.0
        self._looked = now
        return self._idle_seconds > self._timeout_seconds

    def _state(self) -> Any:
        own = self._board.state()
        return own if self._tell_progress is None else (own, self._tell_progress(own))


def _collect(
    group: _Members,
    on_notice: Callable[[Any], None],
    timeout_seconds: float,
    elsewhere: Elsewhere | None,
    pending: interrupts.Pending,
) -> list[Any] | None:
    """Wait for one report from each member; raise on the first that fails, dies without one, or hangs.

    None when a signal wants an end.
    """
    reports: dict[int, Any] = {}
    secondary: WorkerError | None = None
    secondary_until = math.inf
    patience = _Patience(group.board, timeout_seconds, None if elsewhere is None else elsewhere.tell_progress)
    aborts = [] if elsewhere is None else [elsewhere.abort]
    waiting = {pipe: number for number, pipe in enumerate(group.pipes)}
    while waiting:
        seconds = max(0.0, secondary_until - time.monotonic()) if secondary else patience.poll_seconds
        ready = connection.wait([*waiting, pending.reader, *aborts], seconds)
        if pending.received:
            return None
        if secondary and time.monotonic() >= secondary_until:
            raise secondary
        if patience.over():
            raise group.hang(timeout_seconds)
        for pipe in ready:
            if pipe == pending.reader:
                pending.drain()
                continue
            assert isinstance(pipe, connection.Connection)
            if pipe in aborts:
                raise WorkerError(pipe.recv())
            number = waiting[pipe]
            try:
                kind, value = pipe.recv()
            except (EOFError, OSError):
                raise group.death(number) from None
            if kind == "notice":
                on_notice(value)
                continue
            del waiting[pipe]
            if kind == "report":
                reports[number] = value
                continue
            rank = group.first_rank + number
            failure = f"rank {rank} failed {group.board.positions[number]}: {value.message}"
            if not value.secondary:
                raise WorkerError(failure, value.details)
            if secondary is None:
                secondary = PeerError(failure, value.details)
                secondary_until = time.monotonic() + CAUSE_SECONDS
    if secondary:
        raise secondary
    return [reports[number] for number in range(len(group.processes))]


def _is_stopped(process: int | None) -> bool:
    try:
        return psutil.Process(process).status() == psutil.STATUS_STOPPED
    except psutil.Error:
        return False


def _memory_in_words() -> str:
    machine = f"the machine has {psutil.virtual_memory().total / 2**30:.0f} GiB"
    limit = cgroups.memory_limit_bytes()
    return machine if limit is None else f"the cgroup allows {limit / 2**20:,.0f} MiB; {machine}"


def wait_for_server() -> None:
    """Return when the fork server has imported everything and starts workers at once."""
    launch(_nothing, [()], lambda notice: None)


def _nothing(rank: int, notify: Any) -> None:
    """What a worker does whose start is all that matters."""
