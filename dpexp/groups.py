"""Who starts the workers of one training: this process all of them; torchrun_group has the other way."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from dpexp import launch, server, worker
from dpexp.conditions import Watch
from dpexp.config import ExperimentConfig
from dpexp.errors import WorkerError
from dpexp.strategies import strategy_class

T = TypeVar("T")


class Group:
    """On one machine: this process starts every worker."""

    target: server.Target = staticmethod(worker.run)  # what each worker process does
    writes = True  # this process keeps the results

    def run(self, work: worker.Work, on_epoch: Callable[[int], None]) -> list[worker.WorkerReport]:
        """One training by fresh processes; the reports of all ranks. Raises WorkerError."""
        launched = time.monotonic()
        with _start_errors(work), contextlib.ExitStack() as cleanup:
            shared = strategy_class(work.config).share(work.config, work.initial)
            for own in shared:
                if hasattr(own, "close"):
                    cleanup.callback(own.close)
            return launch.launch(
                self.target,
                [(work, own, launched) for own in shared],
                on_epoch,
                timeout_seconds=work.config.launch.timeout_seconds,
            )

    def run_alone(self, work: worker.Work, copies: int, on_epoch: Callable[[int], None]) -> list[worker.WorkerReport]:
        """So many trainings of one process each at the same time, which know nothing of each other."""
        with _start_errors(work):
            return launch.launch(
                _alone,
                [(work, time.monotonic())] * copies,
                on_epoch,
                timeout_seconds=work.config.launch.timeout_seconds,
            )

    @contextlib.contextmanager
    def together(self, config: ExperimentConfig) -> Iterator[None]:
        """Around what every process does alike: what one of them raises, all raise."""
        yield

    def of_first(self, value: T) -> T:
        """The value that rank 0 has."""
        return value

    def watch(self) -> Watch:
        """Look at this machine, from now on; its probes run alone."""
        return Watch()

    def runs_here(self, rank: int) -> bool:
        """Whether the worker of that rank runs on this machine."""
        return True

    def close(self) -> None:
        """After the last job, and after all is written: other ranks' exit must not end the one that writes."""


@contextlib.contextmanager
def _start_errors(work: worker.Work) -> Iterator[None]:
    """Too many open files, or processes, as a WorkerError."""
    try:
        yield
    except OSError as error:
        raise WorkerError(f"workers={work.config.workers} can't be started: {error.strerror}; choose fewer") from error


def _alone(rank: int, work: worker.Work, launched_seconds: float, on_epoch: Callable[[int], None]) -> Any:
    """In each process: rank 0 of a group of one."""
    return dataclasses.replace(worker.run(0, work, None, launched_seconds, on_epoch), rank=rank)
