"""The launcher on one machine: this process starts every worker."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from dpexp.errors import WorkerError
from dpexp.launchers.conductor import Conductor
from dpexp.machine.environment import usable_cores
from dpexp.processes.fork_server import Target
from dpexp.processes.launch import launch_worlds
from dpexp.processes.world import WorldSpec
from dpexp.strategies import strategy_class
from dpexp.training import worker
from dpexp.training.worker import Work, WorkerReport

CANDIDATE = "candidate"


class LocalLauncher:
    """Runs trainings in fresh processes of this machine."""

    def run(self, work: Work) -> list[WorkerReport]:
        """One training in one piece; the reports of all processes by rank. Raises WorkerError."""
        with start_errors(work), contextlib.ExitStack() as cleanup:
            spec = self._world(cleanup, CANDIDATE, work, [None])
            return launch_worlds([spec], lambda *notice: None, work.config.launch.timeout_seconds)[0]

    def run_in_turns(
        self, works: Mapping[str, Work], on_turn: Callable[[float], None]
    ) -> dict[str, list[WorkerReport]]:
        """Trainings that start, warm up and take turns in this order, and back; the reports of each by its name.

        `on_turn` receives the done fraction. Errors name all but the candidate. Raises WorkerError.
        """
        first = next(iter(works.values()))
        with start_errors(first), contextlib.ExitStack() as cleanup:
            gates, specs = [], []
            for name, work in works.items():
                ends = [Pipe(duplex=False) for _ in range(work.copies or 1)]
                for end in (end for pair in ends for end in pair):
                    cleanup.callback(end.close)
                gates.append([sender for _, sender in ends])
                specs.append(self._world(cleanup, name, work, [receiver for receiver, _ in ends]))
            oversubscribed = any(work.config.busy_threads > usable_cores() for work in works.values())
            updates = [work.config.updates for work in works.values()]
            conductor = Conductor(updates, gates, on_turn, oversubscribed)
            reports = launch_worlds(specs, conductor.on_notice, first.config.launch.timeout_seconds)
        return dict(zip(works, reports, strict=True))

    def end(self, status: int, error: str = "") -> None:
        """After everything is written. `status` and `error` are how this command ends."""

    def target(self, name: str, work: Work) -> Target:
        """What each worker process of a training runs."""
        return worker.run

    def _world(self, cleanup: contextlib.ExitStack, name: str, work: Work, gates: list[Connection | None]) -> WorldSpec:
        """The processes of one training; its copies each have a gate, else rank 0 has the only one."""
        launched, shown = time.monotonic(), "" if name == CANDIDATE else name.replace("_", " ")
        target = self.target(name, work)
        if work.copies is not None:
            return WorldSpec(_run_copy, [(target, work, launched, gate) for gate in gates], shown)
        shared = strategy_class(work.config).share(work.config, work.initial)
        for part in shared:
            if hasattr(part, "close"):
                cleanup.callback(part.close)
        rank_gates = [*gates, *[None] * (len(shared) - 1)]
        arguments = [(work, part, launched, gate) for part, gate in zip(shared, rank_gates, strict=True)]
        return WorldSpec(target, arguments, shown)


@contextlib.contextmanager
def start_errors(work: Work) -> Iterator[None]:
    """Turn "too many open files" or "too many processes" into a WorkerError."""
    try:
        yield
    except OSError as error:
        raise WorkerError(
            f"workers={work.config.workers} can't be started: {error.strerror}; use fewer workers"
        ) from error


def _run_copy(rank: int, target: Target, work: Work, launched_seconds: float, gate: Any, notify: Any) -> Any:
    """One of several independent copies: rank 0 of a world of one process."""
    return dataclasses.replace(target(0, work, None, launched_seconds, gate, notify), rank=rank)
