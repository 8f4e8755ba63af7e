"""Launch worlds of worker processes: watch them all, fail fast with the root cause, leave none behind."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from multiprocessing import connection
from typing import Any

from dpexp.errors import PeerError, WorkerError
from dpexp.processes import signals
from dpexp.processes.fork_server import Target
from dpexp.processes.world import RemoteRanks, World, WorldSpec, hang

CAUSE_SECONDS = 1.0  # how long a failure that has its cause in another rank waits for that rank's report
REMOTE_CAUSE_SECONDS = 2 * CAUSE_SECONDS  # the same, where another launching process has to tell it
REMOTE_POLL_SECONDS = 0.2

OnNotice = Callable[[int, int, Any], None]
"""Receives the world's number, the rank's number in it, and what the worker passed to its `notify`."""


class _Interrupted(Exception):  # noqa: N818 - it is no error
    """A signal asks for an end; it is raised again when no process is left."""


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

    with started([spec], of_rank_0, timeout_seconds) as worlds:
        return worlds.reports()[0]


@contextlib.contextmanager
def started(specs: list[WorldSpec], on_notice: OnNotice, timeout_seconds: float = math.inf) -> Iterator[Started]:
    """Within, the processes of all worlds live; however this ends, no process that it started outlives it.

    Raises WorkerError, also when a signal arrives whose handler doesn't raise.
    """
    signals.check()
    with signals.postponed() as pending:  # no half-sent request and no worker may be left
        worlds: list[World] = []
        try:
            for spec in specs:
                worlds.append(World(spec))
                worlds[-1].start()
            yield Started(worlds, on_notice, timeout_seconds, pending)
            return
        except _Interrupted:
            pass
        finally:
            for world in worlds:
                world.kill()
            for world in worlds:
                world.close()
    raise WorkerError("interrupted")


class Started:
    """Worlds whose processes run."""

    def __init__(
        self, worlds: list[World], on_notice: OnNotice, timeout_seconds: float, pending: signals.Pending
    ) -> None:
        self._worlds, self._on_notice, self._pending = worlds, on_notice, pending
        self._timeout_seconds = timeout_seconds
        self._patience = _Patience(worlds, timeout_seconds)
        self._reports: list[dict[int, Any]] = [{} for _ in worlds]
        self._running = {
            pipe: (at, number) for at, world in enumerate(worlds) for number, pipe in enumerate(world.pipes)
        }
        self._secondary: WorkerError | None = None  # of a rank that only lost another one
        self._secondary_until = math.inf

    def reports(self) -> list[list[Any]]:
        """Wait for the end of all processes; the reports of each world by rank. Raises WorkerError."""
        remotes = [world.spec.remote for world in self._worlds if world.spec.remote is not None]
        self.wait_until(lambda: not self._running and all(remote.reports() is not None for remote in remotes))
        if self._secondary:
            raise self._secondary
        reports = []
        for world, found in zip(self._worlds, self._reports, strict=True):
            local, remote = [found[number] for number in range(len(found))], world.spec.remote
            reports.append(local if remote is None else local + (remote.reports() or []))
        return reports

    def wait_until(self, done: Callable[[], bool]) -> None:
        """Pass on notices until `done`, which may only change by them.

        Raises WorkerError with the root cause as soon as any process fails, or when none makes progress for
        `timeout_seconds`.
        """
        self._patience.restart()
        while not done():
            seconds = min(self._patience.poll_seconds, max(0.0, self._secondary_until - time.monotonic()))
            ready = connection.wait([*self._running, self._pending.reader], seconds if seconds < math.inf else None)
            if self._pending.received:
                raise _Interrupted
            if self._secondary and time.monotonic() >= self._secondary_until:
                raise self._secondary
            if self._patience.is_over():
                raise hang(self._worlds, self._timeout_seconds)
            for end in ready:
                if end == self._pending.reader:
                    self._pending.drain()
                    continue
                assert isinstance(end, connection.Connection)
                self._receive(end)

    def _receive(self, pipe: connection.Connection) -> None:
        at, number = self._running[pipe]
        world = self._worlds[at]
        try:
            kind, value = pipe.recv()
        except (EOFError, OSError):
            raise world.death(number) from None
        if kind == "notice":
            self._on_notice(at, number, value)
            return
        del self._running[pipe]
        if kind == "report":
            self._reports[at][number] = value
            return
        failure = f"{world.rank_in_words(number)} failed {world.monitor.heartbeats[number]}: {value.message}"
        if not value.secondary:
            raise WorkerError(failure, value.details)
        if self._secondary is None:
            self._secondary = PeerError(failure, value.details)
            self._secondary_until = time.monotonic() + CAUSE_SECONDS


class _Patience:
    """Measures how long no worker has made progress; time in which this process was itself held up doesn't count."""

    def __init__(self, worlds: list[World], timeout_seconds: float) -> None:
        self.poll_seconds = min(1.0, timeout_seconds / 4) if timeout_seconds < math.inf else math.inf
        if any(world.spec.remote is not None for world in worlds):
            self.poll_seconds = min(self.poll_seconds, REMOTE_POLL_SECONDS)
        self._worlds, self._timeout_seconds = worlds, timeout_seconds
        self.restart()

    def restart(self) -> None:
        """Begin anew: until now, nobody waited."""
        self._last_state, self._last_check, self._idle_seconds = self._state(), time.monotonic(), 0.0

    def is_over(self) -> bool:
        """Whether it has been too long. Raises WorkerError where a remote rank has failed."""
        if self.poll_seconds == math.inf:
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


def wait_for_server() -> None:
    """Return when the fork server has imported everything and starts workers at once."""
    launch(_nothing, [()], lambda notice: None)


def _nothing(rank: int, notify: Any) -> None:
    """The target of a worker that only has to start."""
