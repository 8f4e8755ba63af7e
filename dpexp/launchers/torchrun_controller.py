"""Under torchrun, rank 0: it measures, sends each training to the agents of the other ranks, and collects reports."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

from dpexp.config.experiment import ExperimentConfig
from dpexp.config.job import JobConfig
from dpexp.errors import ConfigError, PeerError, WorkerError
from dpexp.launchers.local import LocalLauncher, Programs
from dpexp.launchers.torchrun_agent import one_rank
from dpexp.launchers.torchrun_environment import TorchrunEnvironment
from dpexp.launchers.torchrun_exchange import GONE, Exchange
from dpexp.processes.launch import REMOTE_CAUSE_SECONDS
from dpexp.processes.world import RemoteRanks, WorldSpec
from dpexp.training.worker import Work, WorkerReport

END_SECONDS = 10.0


class TorchrunController(LocalLauncher):
    """Runs a training of several processes with one in each rank's place, and all others on rank 0's machine.

    It publishes one task after the other. Each agent answers; then the task's outcome is published.
    """

    def __init__(self, environment: TorchrunEnvironment, arguments: Sequence[str]) -> None:
        self._environment, self._arguments = environment, list(arguments)
        self._exchange = Exchange(environment, arguments)
        self._number = 0  # of the last task
        self._loaded: dict[str, Any] | None = None  # the job whose data all agents hold

    def meet(self) -> None:
        """Wait for the other ranks. Raises ConfigError when one was started with another world or other arguments."""
        self._exchange.wait_until(self._have_met)

    def _have_met(self) -> bool:
        for rank, facts in sorted(self._exchange.seen.items()):
            self._environment.check_world_size(rank, facts["world_size"])
            if facts["arguments"] != self._arguments:
                raise ConfigError(
                    f"rank {rank} was started with {' '.join(facts['arguments'])!r}, rank 0 with "
                    f"{' '.join(self._arguments)!r}; start all ranks with the same arguments"
                )
        return len(self._exchange.seen) == self._environment.world_size - 1

    def check(self, config: JobConfig) -> None:
        """Raise ConfigError for a job that the ranks, as they are spread over hosts, can't run."""
        self._environment.check(config)
        assert isinstance(config, ExperimentConfig)
        first = (self._environment.local_rank, self._environment.local_world_size)
        others = [tuple(facts["place"]) for _, facts in sorted(self._exchange.seen.items())]
        try:
            config.strategy.check_places([first, *others])
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def run(self, work: Work) -> list[WorkerReport]:
        """One whole training; agents run the other ranks. Raises WorkerError."""
        with self._agents([work]):
            return super().run(work)

    @contextlib.contextmanager
    def segments(self, works: Mapping[str, Work]) -> Iterator[Programs]:
        """Segments that take turns; agents run the other ranks of the one with several processes."""
        with self._agents(works.values()), super().segments(works) as programs:
            yield programs

    def end(self, status: int, error: str = "") -> None:
        """Let the agents end as this command does, and wait for them, who may still need the store."""
        self._publish(kind="end", status=status, error=error)
        self._exchange.wait_for_others(END_SECONDS)
        self._exchange.close(GONE)

    @contextlib.contextmanager
    def _agents(self, works: Iterable[Work]) -> Iterator[None]:
        """Within, the agents run the other ranks of the work with several processes."""
        several = [work for work in works if work.config.processes > 1]
        if not several:
            yield
            return
        (work,) = several  # independent copies run on one machine
        job = work.dataset.source.settings
        if self._loaded != job:  # before anything is timed
            with self._task(kind="load", job=job):
                self._wait_for_answers()
            self._loaded = job
        what = {"config": work.config.settings, "kernel": work.linear_kernel}
        with self._task(kind="train", in_turns=work.in_turns, **what):
            yield

    @contextlib.contextmanager
    def _task(self, **task: Any) -> Iterator[None]:
        """Within, the agents carry it out. Raises the root cause of a WorkerError."""
        self._publish(**task)
        error = ""
        try:
            yield
        except WorkerError as failure:
            cause = failure
            try:
                if isinstance(failure, PeerError):
                    self._wait_for_answers(REMOTE_CAUSE_SECONDS)  # of those who know the cause
            except WorkerError as told:
                cause = told
            error = str(cause)
            raise cause from None
        finally:
            self._exchange.publish(outcome={"number": self._number, "error": error})

    def _world(
        self, cleanup: contextlib.ExitStack, name: str, work: Work, gates: Sequence[Connection | None]
    ) -> WorldSpec:
        if work.config.processes == 1:
            return super()._world(cleanup, name, work, gates)
        remote = RemoteRanks(0, self._exchange_progress, self._reports)
        return one_rank(work, self._environment, self._number, gates[0], remote)

    def _publish(self, **task: Any) -> None:
        self._number += 1
        self._exchange.publish(task={"number": self._number, **task})

    def _wait_for_answers(self, seconds: float = math.inf) -> None:
        self._exchange.wait_until(lambda: self._reports() is not None, seconds)

    def _exchange_progress(self, local: Any) -> list[Any]:
        self._reports()
        return [facts.get("progress") for facts in self._exchange.seen.values()]

    def _reports(self) -> list[WorkerReport] | None:
        """Of ranks 1 and up, when all have answered. Raises WorkerError when one has failed or is lost."""
        answers = [facts["answer"] for _, facts in sorted(self._exchange.seen.items())]
        answers = [answer for answer in answers if answer["number"] == self._number]
        for answer in answers:
            if "error" in answer:
                raise WorkerError(answer["error"], answer["details"])
        if len(answers) == self._environment.world_size - 1:
            return [WorkerReport(**report) for answer in answers for report in answer["reports"]]
        self._exchange.check()
        return None
