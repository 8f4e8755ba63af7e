"""Launch the worker processes of one training: watch them all, fail fast with the root cause, leave none behind."""

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

from dpexp.errors import PeerError, WorkerError
from dpexp.machine import cgroups
from dpexp.processes import signals
from dpexp.processes.fork_server import Target, start_process, start_server
from dpexp.processes.heartbeat import Monitor

CAUSE_SECONDS = 1.0  # how long a failure that has its cause in another rank waits for that rank's report


@dataclass(frozen=True)
class RemoteRanks:
    """The ranks of a world that other launching processes start, here or on other machines."""

    first_local_rank: int  # of those that this launch starts
    abort: connection.Connection  # a message there ends the launch
    exchange_progress: Callable[[Any], Any]  # takes the local heartbeats; its value changes as remote ranks progress


def launch(
    target: Target,
    arguments: list[tuple[Any, ...]],
    on_notice: Callable[[Any], None],
    timeout_seconds: float = math.inf,
    remote: RemoteRanks | None = None,
) -> list[Any]:
    """Run `target` in one new process for each entry of `arguments`; return their reports by rank.

    `on_notice` receives what rank 0 passes to its `notify`. Raises WorkerError with the root cause as soon as any
    process fails, or when no process makes progress for `timeout_seconds`; however this call ends, no process that it
    started outlives it.
    """
    signals.check()
    with signals.postponed() as pending:  # no half-sent request and no worker may be left
        world = _World(len(arguments), 0 if remote is None else remote.first_local_rank)
        try:
            for number, worker_arguments in enumerate(arguments):
                world.start(target, number, worker_arguments)
            reports = _collect(world, on_notice, timeout_seconds, remote, pending)
        finally:
            world.end()
    if reports is None:
        raise WorkerError("interrupted")  # by a signal whose handler didn't raise
    return reports


class _World:
    """The processes of one launch, and what is known of them."""

    def __init__(self, size: int, first_rank: int) -> None:
        self.context = start_server()
        self.first_rank = first_rank
        self.monitor = Monitor(size)
        self.processes: list[ForkServerProcess] = []
        self.pipes: list[connection.Connection] = []
        self._memory_kills = cgroups.memory_kills()

    def start(self, target: Target, number: int, arguments: tuple[Any, ...]) -> None:
        """Start one process."""
        slot = self.monitor.slots[number]
        process, pipe = start_process(self.context, self.first_rank + number, target, arguments, slot)
        self.processes.append(process)
        self.pipes.append(pipe)

    def end(self) -> None:
        """Kill and reap every process; release what belonged to them."""
        for process in self.processes:
            if process.exitcode is None:
                process.kill()
        for process in self.processes:
            process.join()
            process.close()
        for pipe in self.pipes:
            pipe.close()
        self.monitor.close()

    def death(self, number: int) -> WorkerError:
        """The error for a process that closed its pipe without a report."""
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
        message = f"rank {self.first_rank + number} {how}, {self.monitor.heartbeats[number]}"
        return WorkerError(message, self.monitor.stacks()[number])

    def hang(self, seconds: float) -> WorkerError:
        """The error when no process has made progress for `seconds`, with the stacks of all."""
        stopped = [_is_stopped(process.pid) for process in self.processes]
        states = [
            f"rank {self.first_rank + number} {worker}" + (", stopped by a signal" if stopped[number] else "")
            for number, worker in enumerate(self.monitor.heartbeats)
        ]
        alive = [process.pid if process.exitcode is None else None for process in self.processes]
        # The stopped ones last: asking makes them continue, and others with them.
        self.monitor.ask_for_stacks([None if stopped[number] else pid for number, pid in enumerate(alive)])
        stacks = self.monitor.ask_for_stacks([pid if stopped[number] else None for number, pid in enumerate(alive)])
        details = [f"{state}:\n{stack or 'wrote no stack'}" for state, stack in zip(states, stacks, strict=True)]
        return WorkerError(
            f"no worker made progress for {seconds:g} s: {'; '.join(states)}; "
            "if they are only slow, increase launch.timeout_seconds",
            "\n".join(details),
        )


class _Patience:
    """Measures how long no worker has made progress; time in which this process was itself held up doesn't count."""

    def __init__(
        self, monitor: Monitor, timeout_seconds: float, exchange_progress: Callable[[Any], Any] | None
    ) -> None:
        self.poll_seconds = min(1.0, timeout_seconds / 4) if timeout_seconds < math.inf else None
        self._monitor, self._timeout_seconds, self._exchange = monitor, timeout_seconds, exchange_progress
        self._last_state, self._last_check, self._idle_seconds = self._state(), time.monotonic(), 0.0

    def is_over(self) -> bool:
        """Whether it has been too long."""
        if self.poll_seconds is None:
            return False
        now, state = time.monotonic(), self._state()
        self._idle_seconds += min(now - self._last_check, 2 * self.poll_seconds)
        if state != self._last_state:
            self._last_state, self._idle_seconds = state, 0.0
        self._last_check = now
        return self._idle_seconds > self._timeout_seconds

    def _state(self) -> Any:
        local = self._monitor.state()
        return local if self._exchange is None else (local, self._exchange(local))


def _collect(
    world: _World,
    on_notice: Callable[[Any], None],
    timeout_seconds: float,
    remote: RemoteRanks | None,
    pending: signals.Pending,
) -> list[Any] | None:
    """Wait for one report from each process; raise on the first that fails, dies without one, or hangs.

    None when a signal asks for an end.
    """
    reports: dict[int, Any] = {}
    secondary: WorkerError | None = None
    secondary_until = math.inf
    patience = _Patience(world.monitor, timeout_seconds, None if remote is None else remote.exchange_progress)
    aborts = [] if remote is None else [remote.abort]
    waiting = {pipe: number for number, pipe in enumerate(world.pipes)}
    while waiting:
        seconds = max(0.0, secondary_until - time.monotonic()) if secondary else patience.poll_seconds
        ready = connection.wait([*waiting, pending.reader, *aborts], seconds)
        if pending.received:
            return None
        if secondary and time.monotonic() >= secondary_until:
            raise secondary
        if patience.is_over():
            raise world.hang(timeout_seconds)
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
                raise world.death(number) from None
            if kind == "notice":
                on_notice(value)
                continue
            del waiting[pipe]
            if kind == "report":
                reports[number] = value
                continue
            rank = world.first_rank + number
            failure = f"rank {rank} failed {world.monitor.heartbeats[number]}: {value.message}"
            if not value.secondary:
                raise WorkerError(failure, value.details)
            if secondary is None:
                secondary = PeerError(failure, value.details)
                secondary_until = time.monotonic() + CAUSE_SECONDS
    if secondary:
        raise secondary
    return [reports[number] for number in range(len(world.processes))]


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
    """The target of a worker that only has to start."""
