"""Under torchrun, ranks 1 and up: wait for tasks of rank 0, launch a worker for each, answer with its report."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from dpexp.config.experiment import from_settings
from dpexp.data.dataset import Dataset, load
from dpexp.errors import DpexpError, PeerError, WorkerError, one_line
from dpexp.launchers.local import start_errors
from dpexp.launchers.torchrun_environment import TorchrunEnvironment
from dpexp.launchers.torchrun_exchange import Exchange
from dpexp.models.initial_state import initial_state
from dpexp.processes import signals
from dpexp.processes.launch import REMOTE_CAUSE_SECONDS, launch
from dpexp.processes.world import RemoteRanks, WorldSpec
from dpexp.strategies.rendezvous import Rendezvous
from dpexp.training import worker
from dpexp.training.worker import Work


def serve(environment: TorchrunEnvironment, arguments: Sequence[str], show_error: Callable[[str], None]) -> int:
    """Carry out rank 0's tasks until it ends; return its exit status.

    Raises WorkerError when it dies, ConfigError when it was started with another number of ranks.

    `show_error` is called with what went wrong, which the first rank of each machine shows.
    """
    exchange = Exchange(environment, arguments)
    why = f"rank {environment.rank} has ended; its output says why"
    try:
        return _Agent(environment, exchange, show_error).serve()
    except signals.Interrupted as stop:
        why = f"rank {environment.rank} was ended by {stop}"
        show_error(why)
        raise
    finally:
        exchange.close(why)


def one_rank(
    work: Work, environment: TorchrunEnvironment, task: int, gate: Connection | None, remote: RemoteRanks
) -> WorldSpec:
    """The one worker of a rank, in this task; it is ended when another rank's fails."""
    prefix = f"dpexp/{environment.attempt}/world/{task}"
    place = environment.local_rank, environment.local_world_size
    rendezvous = Rendezvous(environment.master_address, environment.master_port, prefix, *place)
    return WorldSpec(worker.run, [(work, rendezvous, time.monotonic(), gate)], remote=remote)


class _Agent:
    def __init__(self, environment: TorchrunEnvironment, exchange: Exchange, show_error: Callable[[str], None]) -> None:
        self._environment, self._exchange, self._show_error = environment, exchange, show_error
        self._dataset: Dataset | None = None
        self._number = 0  # of the task that is carried out

    def serve(self) -> int:
        """Until rank 0 ends; its exit status."""
        self._exchange.wait_until(lambda: 0 in self._exchange.seen)
        self._environment.check_world_size(0, self._exchange.seen[0]["world_size"])
        error = ""
        while True:
            self._exchange.wait_until(lambda: self._exchange.seen[0]["task"]["number"] > self._number)
            task = self._exchange.seen[0]["task"]
            self._number = task["number"]
            if task["kind"] == "end":
                if task["error"] and not (error and error in task["error"]):  # else it was shown
                    self._show_error(task["error"])
                return int(task["status"])
            self._exchange.publish(answer={"number": self._number, **self._answer(task)})
            self._exchange.wait_until(self._is_over)
            self._exchange.publish(answer={"number": 0})  # nobody shall read it again and again
            error = self._exchange.seen[0]["outcome"]["error"]
            if error:
                self._show_error(error)

    def _is_over(self) -> bool:
        """Whether rank 0 is done with this task."""
        return bool(self._exchange.seen[0]["outcome"]["number"] >= self._number)

    def _answer(self, task: dict[str, Any]) -> dict[str, Any]:
        try:
            if task["kind"] == "load":
                self._dataset = None  # free the memory of the last one first
                self._dataset = load(from_settings(task["job"]))
                return {"reports": []}
            return {"reports": self._train(task)}
        except Exception as error:  # whatever it is, rank 0 must know
            if isinstance(error, PeerError):  # who knows the cause answers first
                self._exchange.wait_until(self._is_over, REMOTE_CAUSE_SECONDS)
            if isinstance(error, WorkerError):  # which names the rank
                return {"error": str(error), "details": error.details}
            message = str(error) if isinstance(error, DpexpError) else one_line(error)
            return {"error": f"rank {self._environment.rank}: {message}", "details": ""}

    def _train(self, task: dict[str, Any]) -> list[dict[str, Any]]:
        config, dataset = from_settings(task["config"]), self._dataset
        assert dataset is not None, "the first task is to load the data"
        remote = RemoteRanks(self._environment.rank, self._exchange_progress, lambda: [])
        with initial_state(config, dataset) as initial:
            work = Work(config, dataset, initial, task["kernel"], in_turns=task["in_turns"])
            spec = one_rank(work, self._environment, self._number, None, remote)
            with start_errors(work):
                reports = launch(spec)  # rank 0 ends those that hang
        return [dataclasses.asdict(report) for report in reports]

    def _exchange_progress(self, local: Any) -> None:
        """Tell rank 0. Raises PeerError when the task is over, WorkerError when rank 0 is lost."""
        self._exchange.publish(at_once=False, progress=local)
        self._exchange.check()
        if self._is_over():
            raise PeerError(self._exchange.seen[0]["outcome"]["error"] or "rank 0 has ended this training")
