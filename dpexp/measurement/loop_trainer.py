"""Trainings by our loop, each by a fresh world of worker processes."""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from dpexp.config.experiment import ExperimentConfig
from dpexp.config.job import JobConfig
from dpexp.errors import DivergedError, WorkerError
from dpexp.launchers.local import LocalLauncher, Programs
from dpexp.machine.environment import usable_cores
from dpexp.machine.memory import PeakMemory
from dpexp.measurement.trainer import Pace, TimedSteps, Trainer
from dpexp.processes.launch import wait_for_server
from dpexp.processes.messages import Turn
from dpexp.processes.shared_memory import SharedTensors
from dpexp.results.schema import Arm, Process, Training
from dpexp.results.storage import finite
from dpexp.train.data.dataset import Dataset, load
from dpexp.train.models.initial_state import initial_state
from dpexp.train.worker import Work, WorkerReport

DIVERGED = "diverged: a loss is not a finite number; try a smaller optimizer.lr"

PACE = Pace(turn_seconds=0.03, lead_seconds=0.003)
# Where more threads than cores have just woken up, the scheduler takes some tens of milliseconds to spread them.
OVERSUBSCRIBED_PACE = Pace(turn_seconds=0.1, lead_seconds=0.03)


@contextlib.contextmanager
def open_trainer(config: ExperimentConfig, launcher: LocalLauncher) -> Iterator[Trainer]:
    """Return a trainer with a job's data and initial weights in shared memory. Raises DataError."""
    dataset = load(config)
    with dataset.tensors, initial_state(config, dataset) as initial:
        yield LoopTrainer(config, dataset, initial, launcher)


class LoopTrainer:
    """Trains all variants by our loop, on the same data and from the same initial state."""

    def __init__(
        self, config: ExperimentConfig, dataset: Dataset, initial: SharedTensors, launcher: LocalLauncher
    ) -> None:
        self._dataset, self._initial, self._launcher = dataset, initial, launcher
        self._placed = dataset
        self.pace = OVERSUBSCRIBED_PACE if config.busy_threads > usable_cores() else PACE
        self.files: set[str] = set()  # the fingerprint has all of them

    def get_ready(self) -> None:
        """Wait for the fork server."""
        wait_for_server()

    @contextlib.contextmanager
    def running(self, variants: Mapping[str, JobConfig]) -> Iterator[LoopArms]:
        """Keep an arm of each variant alive while the context is open, with the data at another place in memory.

        The place of the data changes times by about a percent. Raises WorkerError.
        """
        if self._placed is not self._dataset:
            self._placed.tensors.close()
        self._placed = self._dataset.copy_elsewhere()
        works = {}
        for name, config in variants.items():
            assert isinstance(config, ExperimentConfig)
            works[name] = Work(config, self._placed, self._initial, in_turns=True)
        with self._launcher.segments(works) as programs:
            yield LoopArms(works, programs)

    def train(self, config: ExperimentConfig, checkpoint: Path | None) -> Training:
        """Run a whole training, and evaluate it. Raises WorkerError."""
        with contextlib.ExitStack() as cleanup:
            initial = self._initial
            if config.seed != self._dataset.source.seed:
                initial = cleanup.enter_context(initial_state(config, self._dataset))
            work = Work(config, self._placed, initial, checkpoint)
            return summarize_training(work, self._launcher.run(work))


class LoopArms:
    """Segments of our loop, as arms."""

    def __init__(self, works: Mapping[str, Work], programs: Programs) -> None:
        self._works, self._programs = works, programs

    def turn(self, name: str, turn: Turn) -> list[float]:
        """Let one arm make some steps; return the wall seconds of each timed one. Raises WorkerError."""
        return self._programs.turn(name, turn)

    def end(self, timed: Mapping[str, TimedSteps]) -> dict[str, Arm]:
        """End all arms; return their results. Raises WorkerError, also if replicas differ."""
        reports = self._programs.end()
        if not all(
            math.isfinite(loss) for of_arm in reports.values() for report in of_arm for loss in report.epoch_loss_sums
        ):
            raise DivergedError(DIVERGED)
        memory = self._programs.memory
        return {name: _arm(work, reports[name], timed[name], memory[name]) for name, work in self._works.items()}


def _arm(work: Work, reports: Sequence[WorkerReport], timed: TimedSteps, memory: PeakMemory) -> Arm:
    _check_replicas(reports)
    # By rank: those on this machine are the first.
    memory_by_rank = {} if memory.bytes is None else dict(enumerate(memory.by_process.values()))
    names = [name for name in reports[0].phases if reports[0].phases[name]]
    return Arm(
        samples_per_step=work.config.global_batch_size,
        turn_seconds=timed.turn_seconds,
        first_steps=timed.first_steps,
        phases={name: np.array([report.phases[name] for report in reports]).T.tolist() for name in names},
        between_epochs_seconds=statistics.median(reports[0].between_epochs_seconds or [0.0]),
        warmup_seconds=timed.warmup_seconds,
        parameters_sha256=reports[0].parameters_sha256[0],
        processes=[
            Process(
                report.rank,
                report.threads,
                report.process_cpu_seconds,
                report.startup_seconds,
                memory_bytes=memory_by_rank.get(report.rank),
                host=report.host,
            )
            for report in reports
        ],
        memory_bytes=memory.bytes if len(memory_by_rank) == len(reports) else None,
    )


def summarize_training(work: Work, reports: Sequence[WorkerReport]) -> Training:
    """Return the result of a whole training. Raises WorkerError if replicas differ."""
    _check_replicas(reports)
    samples = work.config.train_samples
    return Training(
        seed=work.config.seed,
        seconds=max(report.seconds for report in reports),
        epoch_losses=[
            finite(sum(sums) / samples) for sums in zip(*(report.epoch_loss_sums for report in reports), strict=True)
        ],
        test_accuracy=reports[0].test_accuracy,
        epoch_accuracies=reports[0].epoch_accuracies,
        parameters_sha256=reports[0].parameters_sha256[0],
    )


def _check_replicas(reports: Sequence[WorkerReport]) -> None:
    """Raise WorkerError if replicas did not start or end with the same parameters."""
    for when, hashes in (
        ("start", [sha256 for report in reports for sha256 in report.initial_sha256]),
        ("end", [sha256 for report in reports for sha256 in report.parameters_sha256]),
    ):
        if len(set(hashes)) > 1:
            ranks = [rank for rank, sha256 in enumerate(hashes) if sha256 != hashes[0]]
            raise WorkerError(f"replicas differ at the {when}: ranks {ranks} do not have rank 0's parameters")
