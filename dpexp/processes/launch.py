"""Launch worlds of worker processes: watch them all, fail fast with the root cause, leave none behind."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

from dpexp.errors import PeerError
from dpexp.machine import signals
from dpexp.processes.fork_server import server_pid, start_server
from dpexp.processes.watchdog import hang_error, wait_until
from dpexp.processes.world import WorkerProcess, WorldSpec

_log = logging.getLogger(__name__)
_warned: set[str] = set()  # by workers of this command: each warning is shown once, not for each process of each block
CAUSE_SECONDS = 1.0  # seconds that a PeerError waits for the report of the rank that caused it
REMOTE_CAUSE_SECONDS = 2 * CAUSE_SECONDS  # the same, if another launching process must report it


def launch(spec: WorldSpec, timeout_seconds: float = math.inf) -> list[Any]:
    """Run one world, ignoring its notices; return the reports of its processes by rank. Raises WorkerError."""
    with running_worlds([spec], timeout_seconds) as running:
        return running.reports()[0]


@contextlib.contextmanager
def running_worlds(specs: Sequence[WorldSpec], timeout_seconds: float = math.inf) -> Iterator[RunningWorlds]:
    """Keep the processes of all worlds alive while the context is open; none of them outlives it.

    Raises WorkerError.
    """
    signals.raise_pending()
    with signals.defer():  # no half-sent request and no worker may be left
        workers: list[WorkerProcess] = []
        try:
            start_server()
            for world, spec in enumerate(specs):
                for number in range(len(spec.arguments)):
                    workers.append(WorkerProcess(spec, world, number))
            yield RunningWorlds(specs, workers, timeout_seconds)
        finally:
            for worker in workers:
                worker.kill()
            for worker in workers:
                worker.close()


class RunningWorlds:
    """The running processes of some worlds."""

    def __init__(self, specs: Sequence[WorldSpec], workers: Sequence[WorkerProcess], timeout_seconds: float) -> None:
        self._timeout_seconds, self._workers = timeout_seconds, workers
        self._worlds = [
            (spec, [worker for worker in workers if worker.world == world]) for world, spec in enumerate(specs)
        ]
        self._running = {worker.pipe: worker for worker in workers}
        self._has_lost_peer = False

    def next_notice(self, world: int) -> Any:
        """Return the next notice of one world. Raises WorkerError as soon as any process fails."""
        _, workers = self._worlds[world]
        self._wait_until(lambda: any(worker.notices for worker in workers))
        return next(worker.notices.pop(0) for worker in workers if worker.notices)

    def pids(self, world: int) -> list[int]:
        """Return the process ids of one world on this machine, by rank; remote ranks come after them."""
        return [worker.pid for worker in self._worlds[world][1]]

    def reports(self) -> list[list[Any]]:
        """Wait for the end of all processes; return the reports of each world by rank. Raises WorkerError."""
        remotes = [spec.remote for spec, _ in self._worlds]
        self._wait_until(lambda: not self._running and all(remote.reports() is not None for remote in remotes))
        return [[worker.report for worker in workers] + (spec.remote.reports() or []) for spec, workers in self._worlds]

    def _wait_until(self, done: Callable[[], bool]) -> None:
        """Receive messages until `done`.

        Raises WorkerError with the root cause as soon as any process fails, or when none makes progress for too long.
        """
        if not wait_until(done, self._timeout_seconds, lambda: self._running, self._receive, self._progress):
            raise hang_error(self._workers, self._timeout_seconds)

    def _receive(self, pipe: Connection) -> None:
        worker = self._running[pipe]
        try:
            kind, value = pipe.recv()
        except (EOFError, OSError):
            raise worker.death_error() from None
        if kind == "notice":
            worker.notices.append(value)
            return
        if kind == "warning":
            if value not in _warned:
                _log.warning(value)
            _warned.add(value)
            return
        del self._running[pipe]
        if kind == "report":
            worker.report = value
            return
        failure = type(value)(f"{worker.name} failed {worker.heartbeat}: {value}", value.details)
        if not isinstance(failure, PeerError):
            raise failure
        if not self._has_lost_peer:
            self._has_lost_peer = True
            until = time.monotonic() + CAUSE_SECONDS
            self._wait_until(lambda: not self._running or time.monotonic() > until)  # which may raise the root cause
            raise failure

    def _progress(self) -> list[Any]:
        """Return states that change whenever any process makes progress. Raises WorkerError if a remote rank failed."""
        states: list[Any] = []
        for spec, workers in self._worlds:
            local = [worker.heartbeat.state() for worker in workers]
            states.append((local, spec.remote.sync_progress(local)))
        return states


def wait_for_server() -> None:
    """Return when the fork server has imported everything and starts workers at once."""
    start_server()
    _first_answer(server_pid())


@functools.cache
def _first_answer(server: int) -> None:
    launch(WorldSpec(_nothing, [()]))


def _nothing(rank: int, notify: Any) -> None:
    """The target of a worker that only starts."""
