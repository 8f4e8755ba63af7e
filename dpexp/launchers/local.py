"""The launcher on one machine: this process starts every worker."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from dpexp.clock.messages import Steps, Turn
from dpexp.config.job import CANDIDATE
from dpexp.errors import WorkerError
from dpexp.launchers.commands import Hosts
from dpexp.processes.fork_server import Target
from dpexp.processes.launch import Started, launch, started
from dpexp.processes.world import WorldSpec
from dpexp.train import worker
from dpexp.train.strategies import strategy_class
from dpexp.train.worker import Work, WorkerReport


class Programs:
    """Segments whose processes run, by name. Errors name all but the candidate."""

    def __init__(self, processes: Started, gates: Mapping[str, Sequence[Connection]]) -> None:
        """Wait until each sleeps before its first turn. Raises WorkerError."""
        self._processes, self._gates = processes, gates
        for name in gates:
            self._answers(name)

    def turn(self, name: str, turn: Turn) -> list[float]:
        """Let one make some steps; the wall seconds of each timed one, of copies the means. Raises WorkerError."""
        for gate in self._gates[name]:
            gate.send(turn)
        return np.mean(self._answers(name), axis=0).tolist()  # type: ignore[no-any-return]

    def end(self) -> dict[str, list[WorkerReport]]:
        """Let all end; the reports of each by rank. Raises WorkerError."""
        for gates in self._gates.values():
            for gate in gates:
                gate.send(None)
        return dict(zip(self._gates, self._processes.reports(), strict=True))

    def _answers(self, name: str) -> list[list[float]]:
        """The seconds of the steps of its last turn, from each of its processes that waits at a gate."""
        notices: list[Steps] = self._processes.notices(list(self._gates).index(name), len(self._gates[name]))
        return [steps.seconds for steps in notices]


class LocalLauncher:
    """Runs trainings in fresh processes of this machine."""

    hosts: Hosts | None = None  # where others take part

    def run(self, work: Work) -> list[WorkerReport]:
        """One whole training; the reports of all processes by rank. Raises WorkerError."""
        with start_errors(work), contextlib.ExitStack() as cleanup:
            return launch(self._world(cleanup, CANDIDATE, work, [None]), work.config.launch.timeout_seconds)

    @contextlib.contextmanager
    def segments(self, works: Mapping[str, Work]) -> Iterator[Programs]:
        """Within, the processes of all segments live, and take turns. Raises WorkerError."""
        first = next(iter(works.values()))
        with start_errors(first), contextlib.ExitStack() as cleanup:
            gates, specs = {}, []
            for name, work in works.items():
                ends = [Pipe(duplex=False) for _ in range(work.copies or 1)]
                for end in itertools.chain(*ends):
                    cleanup.callback(end.close)
                gates[name] = [sender for _, sender in ends]
                specs.append(self._world(cleanup, name, work, [receiver for receiver, _ in ends]))
            with started(specs, first.config.launch.timeout_seconds) as processes:
                yield Programs(processes, gates)

    def end(self, status: int, error: str = "") -> None:
        """After everything is written. `status` and `error` are how this command ends."""

    def target(self, name: str, work: Work) -> Target:
        """What each worker process runs."""
        return worker.run

    def _world(
        self, cleanup: contextlib.ExitStack, name: str, work: Work, gates: Sequence[Connection | None]
    ) -> WorldSpec:
        """The processes of one training; its copies each have a gate, else rank 0 has the only one."""
        launched, shown = time.monotonic(), "" if name == CANDIDATE else name.replace("_", " ")
        target = self.target(name, work)
        if work.copies is not None:
            return WorldSpec(_run_copy, [(target, work, launched, gate) for gate in gates], shown)
        shared = strategy_class(work.config).share(work.config, work.initial)
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
