"""One training of a variant, by a fresh world of worker processes."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dpexp.config.experiment import ExperimentConfig
from dpexp.data.dataset import Dataset
from dpexp.errors import WorkerError
from dpexp.launchers.local import LocalLauncher
from dpexp.models.initial_state import initial_state
from dpexp.processes.shared_memory import SharedTensors
from dpexp.results.schema import Distribution, Training, WorkerTimes
from dpexp.results.storage import finite
from dpexp.training.worker import Work, WorkerReport


@dataclass(frozen=True)
class Variant:
    """What one part of a block trains; with `copies`, as many independent processes at once."""

    config: ExperimentConfig
    copies: int | None = None


class Trainer:
    """Trains variants of one job, all on the same data, from the same initial state and with the same kernel."""

    def __init__(self, dataset: Dataset, initial: SharedTensors, linear_kernel: str, launcher: LocalLauncher) -> None:
        self._dataset, self._initial, self._launcher = dataset, initial, launcher
        self.linear_kernel = linear_kernel

    def reseed(self, config: ExperimentConfig) -> None:
        """From now on, start from the weights of this configuration's seed; the data stay the same."""
        self._initial = initial_state(config, self._dataset)

    def train(
        self,
        variant: Variant,
        evaluate: bool = False,
        checkpoint: Path | None = None,
        on_epoch: Callable[[int], None] = lambda epoch: None,
    ) -> Training:
        """One training. Raises WorkerError, also when replicas differ."""
        work = Work(variant.config, self._dataset, self._initial, self.linear_kernel, evaluate, checkpoint)
        return train_world(work, on_epoch, self._launcher, variant.copies)


def train_world(
    work: Work, on_epoch: Callable[[int], None], launcher: LocalLauncher, copies: int | None = None
) -> Training:
    """One training by a fresh world, or by so many independent `copies`. Raises WorkerError."""
    started = time.perf_counter()
    if copies is None:
        reports = launcher.run(work, on_epoch)
        _check_replicas(reports)
    else:
        reports = launcher.run_copies(work, copies, on_epoch)
    samples = work.config.train_samples * (copies or 1)
    return Training(
        seconds=max(report.seconds for report in reports),
        epoch_losses=[
            finite(sum(sums) / samples) for sums in zip(*(report.epoch_loss_sums for report in reports), strict=True)
        ],
        test_accuracy=reports[0].test_accuracy,
        epoch_seconds=[max(times) for times in zip(*(report.epoch_seconds for report in reports), strict=True)],
        epoch_accuracies=reports[0].epoch_accuracies,
        parameters_sha256=reports[0].parameters_sha256[0],
        linear_kernel=work.linear_kernel,
        launch_seconds=time.perf_counter() - started,
        workers=[_recorded(report) for report in reports],
    )


def _check_replicas(reports: list[WorkerReport]) -> None:
    """Raise WorkerError where replicas did not start or end with the same parameters."""
    for when, hashes in (
        ("start", [sha256 for report in reports for sha256 in report.initial_sha256]),
        ("end", [sha256 for report in reports for sha256 in report.parameters_sha256]),
    ):
        if len(set(hashes)) > 1:
            ranks = [rank for rank, sha256 in enumerate(hashes) if sha256 != hashes[0]]
            raise WorkerError(f"replicas differ at the {when}: ranks {ranks} do not have rank 0's parameters")


def _recorded(report: WorkerReport) -> WorkerTimes:
    """The part of a worker's report that a result keeps."""
    names = [field.name for field in dataclasses.fields(WorkerTimes) if field.name != "phases"]
    phases = {name: Distribution(**values) for name, values in report.phases.items()}
    return WorkerTimes(**{name: getattr(report, name) for name in names}, phases=phases)
