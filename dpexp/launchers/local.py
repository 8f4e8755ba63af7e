"""The launcher on one machine: this process starts every worker."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

from dpexp.errors import WorkerError
from dpexp.processes.fork_server import Target
from dpexp.processes.launch import launch
from dpexp.strategies import strategy_class
from dpexp.training import worker
from dpexp.training.worker import Work, WorkerReport


class LocalLauncher:
    """Runs each training in fresh processes of this machine."""

    target: Target = staticmethod(worker.run)  # of each worker process

    def run(self, work: Work, on_epoch: Callable[[int], None]) -> list[WorkerReport]:
        """One training; the reports of all processes by rank. `on_epoch` hears from rank 0. Raises WorkerError."""
        launched = time.monotonic()
        with start_errors(work), contextlib.ExitStack() as cleanup:
            shared = strategy_class(work.config).share(work.config, work.initial)
            for part in shared:
                if hasattr(part, "close"):
                    cleanup.callback(part.close)
            arguments = [(work, part, launched) for part in shared]
            return launch(self.target, arguments, on_epoch, work.config.launch.timeout_seconds)

    def run_copies(self, work: Work, copies: int, on_epoch: Callable[[int], None]) -> list[WorkerReport]:
        """Several trainings of one process each, at the same time and independent of each other."""
        arguments = [(work, time.monotonic())] * copies
        with start_errors(work):
            return launch(_run_copy, arguments, on_epoch, work.config.launch.timeout_seconds)

    def end(self, status: int, error: str = "") -> None:
        """After everything is written. `status` and `error` are how this command ends."""


@contextlib.contextmanager
def start_errors(work: Work) -> Iterator[None]:
    """Turn "too many open files" or "too many processes" into a WorkerError."""
    try:
        yield
    except OSError as error:
        raise WorkerError(
            f"workers={work.config.workers} can't be started: {error.strerror}; use fewer workers"
        ) from error


def _run_copy(rank: int, work: Work, launched_seconds: float, on_epoch: Callable[[int], None]) -> Any:
    """In each process of `run_copies`: rank 0 of a world of one."""
    return dataclasses.replace(worker.run(0, work, None, launched_seconds, on_epoch), rank=rank)
