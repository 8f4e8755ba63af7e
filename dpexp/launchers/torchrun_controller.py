"""Under torchrun, rank 0: it measures, sends each training to the agents of the other ranks, and collects reports."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

from dpexp.clock.messages import Turn
from dpexp.config.experiment import ExperimentConfig
from dpexp.errors import ConfigError, PeerError, WorkerError
from dpexp.launchers.local import LocalLauncher, Programs
from dpexp.launchers.torchrun_environment import TorchrunEnvironment
from dpexp.launchers.torchrun_store import Store
from dpexp.launchers.torchrun_worker import one_rank
from dpexp.processes.world import WorldSpec
from dpexp.training.worker import Work, WorkerReport

END_SECONDS = 10.0


class TorchrunController(LocalLauncher):
    """Runs a training of several processes with one in each rank's place, and all others on rank 0's machine.

    Each task has a number; the agents wait for its key, and answer below it.
    """

    def __init__(self, environment: TorchrunEnvironment, arguments: Sequence[str]) -> None:
        self._environment = environment
        self._store = Store(environment)
        self._store.put("started/0", environment.world_size)
        self._arguments = list(arguments)
        self._tasks = self._task = 0  # how many were published; the one that runs
        self._loaded: dict[str, Any] | None = None  # the job whose data all agents hold

    def meet(self) -> None:
        """Wait for the other ranks. Raises ConfigError when one was started with another world or other arguments."""
        for rank in range(1, self._environment.world_size):
            world_size, *theirs = self._store.get(f"started/{rank}")
            self._environment.check_world_size(rank, world_size)
            if theirs != self._arguments:
                raise ConfigError(
                    f"rank {rank} was started with {' '.join(theirs)!r}, rank 0 with {' '.join(self._arguments)!r}; "
                    "start all ranks with the same arguments"
                )

    def check(self, config: ExperimentConfig) -> None:
        """Raise ConfigError for a job that the ranks, as they are spread over hosts, can't run."""
        self._environment.check(config)
        places = [tuple(self._store.get(f"place/{rank}")) for rank in range(self._environment.world_size)]
        try:
            config.strategy.check_places(places)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def run(self, work: Work) -> list[WorkerReport]:
        """One whole training; agents run the other ranks. Raises WorkerError."""
        if work.config.processes == 1:
            return super().run(work)
        with self._agents(work) as others:
            return super().run(work) + others()

    @contextlib.contextmanager
    def segments(self, works: Mapping[str, Work]) -> Iterator[Programs]:
        """Segments that take turns; agents run the other ranks of the one with several processes."""
        several = [name for name, work in works.items() if work.config.processes > 1]
        assert len(several) <= 1, "independent copies run on one machine"
        if not several:
            with super().segments(works) as programs:
                yield programs
            return
        with self._agents(works[several[0]]) as others, super().segments(works) as programs:
            yield _Everywhere(programs, several[0], others)

    @contextlib.contextmanager
    def _agents(self, work: Work) -> Iterator[Callable[[], list[WorkerReport]]]:
        """Within, the agents run the ranks 1 and up of this training, and it gives a function that gets their reports.

        Raises the root cause of a WorkerError.
        """
        job = work.dataset.source.settings
        if self._loaded != job:
            self._load(job)
        task = {"job": job, "config": work.config.settings, "kernel": work.linear_kernel}
        self._task = self._publish({"kind": "train", "evaluate": work.evaluate, "in_turns": work.in_turns, **task})

        def others() -> list[WorkerReport]:
            answers = self._answers(self._task)
            if any("error" in answer for answer in answers):
                raise self._store.failure(self._task)
            return [WorkerReport(**report) for answer in answers for report in answer["reports"]]

        try:
            yield others
        except WorkerError as failure:
            self._store.report_failure(self._task, failure)
            self._answers(self._task)  # nobody trains any more
            raise self._store.failure(self._task) from None

    def _world(
        self, cleanup: contextlib.ExitStack, name: str, work: Work, gates: Sequence[Connection | None]
    ) -> WorldSpec:
        if work.config.processes == 1:
            return super()._world(cleanup, name, work, gates)
        remote = cleanup.enter_context(self._store.remote_ranks(self._task))
        return one_rank(work, self._store, self._task, gates[0], remote)

    def end(self, status: int, error: str = "") -> None:
        """Let the agents end as this command does, and wait for them, who may still need the store."""
        with contextlib.suppress(RuntimeError, WorkerError):  # the store is gone, or an agent has died: it says why
            self._publish({"kind": "end", "status": status, "error": error})
            self._store.put("ended/0", True)
            started = [rank for rank in range(1, self._environment.world_size) if self._store.has(f"started/{rank}")]
            self._store.wait_for([f"left/{rank}" for rank in started], END_SECONDS)

    def _load(self, job: dict[str, Any]) -> None:
        """Have every agent load the data of a job before anything is timed."""
        for rank, answer in enumerate(self._answers(self._publish({"kind": "load", "job": job})), 1):
            if "left" in answer:
                raise PeerError(answer["error"])
            if "error" in answer:
                raise ConfigError(f"rank {rank}: {answer['error']}")
        self._loaded = job

    def _publish(self, task: dict[str, Any]) -> int:
        """Let all agents know the next task; return its number."""
        self._store.put(f"task/{self._tasks}", task)
        self._tasks += 1
        return self._tasks - 1

    def _answers(self, task: int) -> list[dict[str, Any]]:
        """The answers of ranks 1 and up."""
        return [self._store.get(f"answer/{task}/{rank}") for rank in range(1, self._environment.world_size)]


class _Everywhere(Programs):
    """Segments on rank 0's machine, of which one has other ranks elsewhere."""

    def __init__(self, programs: Programs, name: str, others: Callable[[], list[WorkerReport]]) -> None:
        self._programs, self._name, self._others = programs, name, others

    def turn(self, name: str, turn: Turn) -> list[float]:
        """Let one make some steps; the wall seconds of each timed one. Raises WorkerError."""
        return self._programs.turn(name, turn)

    def end(self) -> dict[str, list[WorkerReport]]:
        """Let all end; the reports of each by rank, those from elsewhere included. Raises WorkerError."""
        reports = self._programs.end()
        return reports | {self._name: reports[self._name] + self._others()}
