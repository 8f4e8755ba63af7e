"""Trainings by our loop, in turns, each by a fresh world of worker processes."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from dpexp.analysis.calm_steps import binned
from dpexp.config.experiment import ExperimentConfig
from dpexp.data.dataset import Dataset, load
from dpexp.errors import WorkerError
from dpexp.launchers.local import CANDIDATE, LocalLauncher
from dpexp.machine import core_latency
from dpexp.machine.core_latency import CoreLatency
from dpexp.machine.environment import usable_cores
from dpexp.measurement.trainer import Trainer, Variant
from dpexp.models import architectures, linear_kernels
from dpexp.models.initial_state import initial_state
from dpexp.processes.launch import wait_for_server
from dpexp.processes.shared_memory import SharedTensors
from dpexp.results.schema import Block, Distribution, StepTimes, Training, WorkerTimes
from dpexp.results.storage import finite
from dpexp.strategies import strategy_class
from dpexp.training.worker import Work, WorkerReport


@contextlib.contextmanager
def prepared(config: ExperimentConfig, folder: Path, launcher: LocalLauncher) -> Iterator[Trainer]:
    """With the data and the initial weights of a job, in shared memory. Raises ConfigError, DataError."""
    dataset = load(config)
    with dataset.tensors, initial_state(config, dataset) as initial:
        yield LoopTrainer(dataset, initial, launcher)


class LoopTrainer:
    """Trains by our loop, all variants on the same data, from the same initial state and with the same kernel."""

    def __init__(
        self, dataset: Dataset, initial: SharedTensors, launcher: LocalLauncher, linear_kernel: str | None = None
    ) -> None:
        self._dataset, self._initial, self._launcher = dataset, initial, launcher
        self._linear_kernel, self._placed = linear_kernel, dataset

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of a sample."""
        return self._dataset.input_shape

    def get_ready(self, config: ExperimentConfig, earlier: Sequence[Block]) -> None:
        """Choose the kernel of linear layers, unless it is known."""
        wait_for_server()  # which would disturb the timing while it starts
        if earlier:
            self._linear_kernel = earlier[0].candidate.linear_kernel
        elif self._linear_kernel is None:
            model = architectures.build(config.model, self._dataset.input_shape, self._dataset.classes)
            self._linear_kernel = linear_kernels.choose(config, model)

    def place_anew(self) -> None:
        """From now on, use the data in other memory: where it lies changes times by about a percent."""
        if self._placed is not self._dataset:
            self._placed.tensors.close()
        self._placed = self._dataset.placed_anew()

    def reseed(self, config: ExperimentConfig) -> None:
        """From now on, start from the weights of this configuration's seed; the data stay the same."""
        self._initial = initial_state(config, self._dataset)

    def train_in_turns(
        self,
        variants: Mapping[str, Variant],
        evaluate: bool = False,
        checkpoint: Path | None = None,
        on_turn: Callable[[float], None] = lambda done: None,
    ) -> dict[str, Training]:
        """One training of each variant, in fresh processes and in this order; see LocalLauncher. Raises WorkerError."""
        works = {name: self._work(name, variant, evaluate, checkpoint) for name, variant in variants.items()}
        latency = core_latency.measured()
        reports = self._launcher.run_in_turns(works, on_turn)
        return {name: recorded(works[name], reports[name], latency) for name in works}

    def _work(self, name: str, variant: Variant, evaluate: bool, checkpoint: Path | None) -> Work:
        saved_to = checkpoint if name == CANDIDATE else None
        assert self._linear_kernel is not None
        return Work(
            variant.config, self._placed, self._initial, self._linear_kernel, evaluate, saved_to, variant.copies
        )


def recorded(work: Work, reports: list[WorkerReport], latency: CoreLatency | None = None) -> Training:
    """What a result keeps of a training; `latency` is of the cores before it. Raises WorkerError if replicas differ."""
    if work.copies is None:
        _check_replicas(reports)
    samples = work.config.train_samples * (work.copies or 1)
    return Training(
        turn_seconds=[max(turns) for turns in zip(*(report.turn_seconds for report in reports), strict=True)],
        steps=_step_times(work, reports),
        epoch_losses=[
            finite(sum(sums) / samples) for sums in zip(*(report.epoch_loss_sums for report in reports), strict=True)
        ],
        test_accuracy=reports[0].test_accuracy,
        epoch_seconds=[max(times) for times in zip(*(report.epoch_seconds for report in reports), strict=True)],
        epoch_accuracies=reports[0].epoch_accuracies,
        parameters_sha256=reports[0].parameters_sha256[0],
        linear_kernel=work.linear_kernel,
        workers=[_worker_times(report) for report in reports],
        core_latency=latency if work.copies is None and work.config.busy_threads > 1 else None,
    )


def _step_times(work: Work, reports: list[WorkerReport]) -> StepTimes | None:
    """The steps by the compute time of their slowest worker; None where that doesn't tell whether its core was slow."""
    config = work.config
    copies_share_cores = work.copies is not None and work.copies * config.busy_threads > usable_cores()
    share_cores = copies_share_cores or strategy_class(config).shares_cores(config)
    if share_cores or not all(report.steps for report in reports):
        return None
    ranks = np.array([report.steps for report in reports])  # (workers, steps, phases)
    if work.copies is not None:  # which don't meet
        ranks = ranks.reshape(1, -1, ranks.shape[2])
    partial = config.epochs if config.train_samples % config.global_batch_size else 0
    slowest = [max(steps) for steps in zip(*(report.partial_steps for report in reports), strict=True)]
    # There are too few of them for a statistic; nothing makes a step faster, but much makes it slower.
    return binned(ranks, config.updates - partial, partial, min(slowest, default=0.0))


def _check_replicas(reports: list[WorkerReport]) -> None:
    """Raise WorkerError where replicas did not start or end with the same parameters."""
    for when, hashes in (
        ("start", [sha256 for report in reports for sha256 in report.initial_sha256]),
        ("end", [sha256 for report in reports for sha256 in report.parameters_sha256]),
    ):
        if len(set(hashes)) > 1:
            ranks = [rank for rank, sha256 in enumerate(hashes) if sha256 != hashes[0]]
            raise WorkerError(f"replicas differ at the {when}: ranks {ranks} do not have rank 0's parameters")


def _worker_times(report: WorkerReport) -> WorkerTimes:
    """The part of a worker's report that a result keeps."""
    names = [field.name for field in dataclasses.fields(WorkerTimes) if field.name not in ("seconds", "phases")]
    phases = {name: Distribution(**values) for name, values in report.phases.items()}
    values = {name: getattr(report, name) for name in names}
    return WorkerTimes(**values, seconds=sum(report.turn_seconds), phases=phases)
