"""Launch worlds of worker processes: watch them all, fail fast with the root cause, leave none behind."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from multiprocessing import connection
from typing import Any

from dpexp.errors import PeerError, WorkerError
from dpexp.processes import signals
from dpexp.processes.fork_server import Target
from dpexp.processes.world import RemoteRanks, World, WorldSpec, hang

CAUSE_SECONDS = 1.0  # how long a failure that has its cause in another rank waits for that rank's report

OnNotice = Callable[[int, int, Any], None]
"""Receives the world's number, the rank's number in it, and what the worker passed to its `notify`."""


def launch(
    target: Target,
    arguments: list[tuple[Any, ...]],
    on_notice: Callable[[Any], None],
    timeout_seconds: float = math.inf,
    remote: RemoteRanks | None = None,
) -> list[Any]:
    """One world; the reports of its processes by rank. `on_notice` receives what rank 0 passes to its `notify`."""
    spec = WorldSpec(target, arguments, remote=remote)

    def of_rank_0(world: int, number: int, notice: Any) -> None:
        if number == 0:
            on_notice(notice)

    return launch_worlds([spec], of_rank_0, timeout_seconds)[0]


def launch_worlds(specs: list[WorldSpec], on_notice: OnNotice, timeout_seconds: float = math.inf) -> list[list[Any]]:
    """Start all worlds; return the reports of each by rank.

    Raises WorkerError with the root cause as soon as any process fails, or when none makes progress for
    `timeout_seconds`; however this call ends, no process that it started outlives it.
    """
    signals.check()
    with signals.postponed() as pending:  # no half-sent request and no worker may be left
        worlds: list[World] = []
        try:
            for spec in specs:
                worlds.append(World(spec))
                worlds[-1].start()
            reports = _collect(worlds, on_notice, timeout_seconds, pending)
        finally:
            for world in worlds:
                world.kill()
            for world in worlds:
                world.close()
    if reports is None:
        raise WorkerError("interrupted")  # by a signal whose handler didn't raise
    return reports


class _Patience:
    """Measures how long no worker has made progress; time in which this process was itself held up doesn't count."""

    def __init__(self, worlds: list[World], timeout_seconds: float) -> None:
        self.poll_seconds = min(1.0, timeout_seconds / 4) if timeout_seconds < math.inf else None
        self._worlds, self._timeout_seconds = worlds, timeout_seconds
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
        states = []
        for world in self._worlds:
            local, remote = world.monitor.state(), world.spec.remote
            states.append(local if remote is None else (local, remote.exchange_progress(local)))
        return states


def _collect(
    worlds: list[World], on_notice: OnNotice, timeout_seconds: float, pending: signals.Pending
) -> list[list[Any]] | None:
    """Wait for one report from each process; raise on the first that fails, dies without one, or hangs.

    None when a signal asks for an end.
    """
    reports: list[dict[int, Any]] = [{} for _ in worlds]
    secondary: WorkerError | None = None
    secondary_until = math.inf
    patience = _Patience(worlds, timeout_seconds)
    aborts = [world.spec.remote.abort for world in worlds if world.spec.remote is not None]
    waiting = {pipe: (at, number) for at, world in enumerate(worlds) for number, pipe in enumerate(world.pipes)}
    while waiting:
        seconds = max(0.0, secondary_until - time.monotonic()) if secondary else patience.poll_seconds
        ready = connection.wait([*waiting, pending.reader, *aborts], seconds)
        if pending.received:
            return None
        if secondary and time.monotonic() >= secondary_until:
            raise secondary
        if patience.is_over():
            raise hang(worlds, timeout_seconds)
        for pipe in ready:
            if pipe == pending.reader:
                pending.drain()
                continue
            assert isinstance(pipe, connection.Connection)
            if pipe in aborts:
                raise WorkerError(pipe.recv())
            at, number = waiting[pipe]
            world = worlds[at]
            try:
                kind, value = pipe.recv()
            except (EOFError, OSError):
                raise world.death(number) from None
            if kind == "notice":
                on_notice(at, number, value)
                continue
            del waiting[pipe]
            if kind == "report":
                reports[at][number] = value
                continue
            failure = f"{world.rank_in_words(number)} failed {world.monitor.heartbeats[number]}: {value.message}"
            if not value.secondary:
                raise WorkerError(failure, value.details)
            if secondary is None:
                secondary = PeerError(failure, value.details)
                secondary_until = time.monotonic() + CAUSE_SECONDS
    if secondary:
        raise secondary
    return [[found[number] for number in range(len(found))] for found in reports]


def wait_for_server() -> None:
    """Return when the fork server has imported everything and starts workers at once."""
    launch(_nothing, [()], lambda notice: None)


def _nothing(rank: int, notify: Any) -> None:
    """The target of a worker that only has to start."""
