"""Under torchrun, ranks 1 and up: wait for tasks of rank 0, launch a worker for each, answer with its report."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from dpexp.config.experiment import ExperimentConfig, from_settings
from dpexp.data.dataset import Dataset, load
from dpexp.errors import DpexpError, PeerError, WorkerError, one_line
from dpexp.launchers.local import start_errors
from dpexp.launchers.torchrun_environment import TorchrunEnvironment
from dpexp.launchers.torchrun_store import Store
from dpexp.launchers.torchrun_worker import one_rank
from dpexp.models.initial_state import initial_state
from dpexp.processes import signals
from dpexp.processes.launch import started
from dpexp.training.worker import Work


def serve(environment: TorchrunEnvironment, arguments: Sequence[str], show_error: Callable[[str], None]) -> int:
    """Carry out rank 0's tasks until it ends; return its exit status.

    Raises PeerError when it dies, ConfigError when rank 0's world has no such rank.

    `show_error` is called with what went wrong, which the first rank of each machine shows.
    """
    agent = _Agent(Store(environment), show_error)
    agent.store.put(f"started/{environment.rank}", [environment.world_size, *arguments])
    world_size = agent.store.get("started/0")
    if environment.rank >= world_size:  # rank 0 doesn't know of this one
        environment.check_world_size(0, world_size)
    try:
        for number in itertools.count():
            task = agent.store.get(f"task/{number}")
            if task["kind"] == "end":
                break
            agent.carry_out(number, task)
    except signals.Interrupted as stop:
        agent.leave(number, f"was ended by {stop}")
        raise
    if task["error"]:
        show_error(task["error"])
    agent.store.put(f"ended/{environment.rank}", True)
    agent.store.put(f"left/{environment.rank}", True)
    return int(task["status"])


class _Agent:
    def __init__(self, store: Store, show_error: Callable[[str], None]) -> None:
        self.store, self._show_error = store, show_error
        self._dataset: Dataset | None = None

    def carry_out(self, number: int, task: dict[str, Any]) -> None:
        """Answer one task; show the error that all ranks share, if there is one."""
        answer: dict[str, Any] = {"reports": []}
        try:
            if task["kind"] == "load":
                self._load(from_settings(task["job"]))
            else:
                answer["reports"] = self._train(number, task)
        except Exception as error:  # whatever it is, rank 0 must know
            answer["error"] = str(error) if isinstance(error, DpexpError) else one_line(error)
            if task["kind"] == "train":
                failure = error if isinstance(error, WorkerError) else WorkerError(self._named(answer["error"]))
                self.store.report_failure(number, failure)
        self.store.put(f"answer/{number}/{self.store.environment.rank}", answer)
        if "error" in answer:
            shared = str(self.store.failure(number)) if task["kind"] == "train" else self._named(answer["error"])
            self._show_error(shared)

    def leave(self, number: int, why: str) -> None:
        """Let rank 0 know, which would else wait for this rank's answer to that task until it misses its beats."""
        error = f"rank {self.store.environment.rank} {why}"
        self._show_error(error)
        with contextlib.suppress(PeerError):  # rank 0 has ended, too
            self.store.report_failure(number, WorkerError(error))
            self.store.put(f"answer/{number}/{self.store.environment.rank}", {"error": error, "left": True})
            self.store.put(f"left/{self.store.environment.rank}", True)  # not as rank 0 asked

    def _load(self, job: ExperimentConfig) -> Dataset:
        self._dataset = None  # free the memory of the last one first
        self._dataset = load(job)
        return self._dataset

    def _train(self, number: int, task: dict[str, Any]) -> list[dict[str, Any]]:
        config = from_settings(task["config"])
        dataset = self._dataset or self._load(from_settings(task["job"]))
        with initial_state(config, dataset) as initial:
            work = Work(config, dataset, initial, task["kernel"], task["evaluate"], in_turns=task["in_turns"])
            with start_errors(work), self.store.remote_ranks(number) as remote:
                spec = one_rank(work, self.store, number, None, remote)
                with started([spec], lambda *notice: None, config.launch.timeout_seconds) as processes:
                    (reports,) = processes.reports()
        return [dataclasses.asdict(report) for report in reports]

    def _named(self, message: str) -> str:
        return f"rank {self.store.environment.rank}: {message}"
