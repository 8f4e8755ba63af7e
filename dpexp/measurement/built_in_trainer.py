"""Built-in trainings, each in a fresh set of worker processes."""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from dpexp.config.built_in import BuiltInConfig
from dpexp.config.job import JobConfig, arm_label
from dpexp.errors import DivergedError, WorkerError
from dpexp.launchers.local import LocalLauncher, RunningSegments
from dpexp.machine.environment import usable_cores
from dpexp.measurement.trainer import ArmSteps, Pace
from dpexp.processes.launch import wait_for_server
from dpexp.results.schema import Arm, Process, Training
from dpexp.train.data.dataset import load
from dpexp.train.models.initial_state import initial_state
from dpexp.train.worker import TrainingSpec, WorkerReport

PACE = Pace(turn_seconds=0.03, untimed_seconds=0.003)
# Where more threads than cores have just woken up, the scheduler takes some milliseconds to spread them.
OVERSUBSCRIBED_PACE = Pace(turn_seconds=0.05, untimed_seconds=0.015)


class BuiltInTrainer:
    """Trains all arms with the built-in loop, on the same data and from the same initial state."""

    def __init__(self, config: BuiltInConfig, launcher: LocalLauncher) -> None:
        """Load the data and the initial weights into shared memory, and wait for the fork server.

        Raises ConfigError, DataError, WorkerError.
        """
        self._dataset, self._launcher = load(config), launcher
        self._initial, self._block_dataset = initial_state(config, self._dataset), self._dataset
        self.files: set[str] = set()  # all of them are in the fingerprint
        wait_for_server()

    def pace(self, configs: Mapping[str, JobConfig]) -> Pace:
        """Return the length of turns: longer if any arm has more threads than cores."""
        threads = max(config.threads_on(self._launcher.machines) for config in configs.values())
        return OVERSUBSCRIBED_PACE if threads > usable_cores() else PACE

    @contextlib.contextmanager
    def running(self, configs: Mapping[str, JobConfig]) -> Iterator[BuiltInArms]:
        """Keep the arms of these names alive while the context is open. Raises WorkerError.

        Data of up to 512 MiB are copied for each block, since their place in memory changes times by about a percent.
        """
        self._block_dataset = self._dataset.copy_elsewhere()
        specs = {}
        for name, config in configs.items():
            assert isinstance(config, BuiltInConfig)
            specs[name] = TrainingSpec(config, self._block_dataset, self._initial, in_turns=True)
        with self._launcher.segments(specs) as segments:
            yield BuiltInArms(specs, segments)

    def train(self, config: BuiltInConfig, checkpoint: Path | None) -> Training:
        """Run a whole training, and evaluate it. Raises WorkerError."""
        is_seed_of_job = config.seed == self._dataset.config.seed
        initial = self._initial if is_seed_of_job else initial_state(config, self._dataset)
        spec = TrainingSpec(config, self._block_dataset, initial, checkpoint)
        return summarize_training(spec, self._launcher.run(spec))


class BuiltInArms:
    """Segments of built-in trainings, as arms."""

    def __init__(self, specs: Mapping[str, TrainingSpec], segments: RunningSegments) -> None:
        self._specs, self._segments = specs, segments
        self.run_turn = segments.run_turn

    def end(self, timed: Mapping[str, ArmSteps]) -> dict[str, Arm]:
        """End all arms; return their results. Raises DivergedError, and WorkerError, also if replicas differ."""
        reports = self._segments.end()
        memory = self._segments.memory_bytes
        for name, of_arm in reports.items():
            check_reports(of_arm, arm_label(name))
        return {name: _arm(spec, reports[name], timed[name], memory[name]) for name, spec in self._specs.items()}


def _arm(spec: TrainingSpec, reports: Sequence[WorkerReport], timed: ArmSteps, memory_bytes: int | None) -> Arm:
    names = [name for name in reports[0].phases if reports[0].phases[name]]
    return Arm(
        samples_per_step=spec.config.global_batch_size,
        turns=timed.turns,
        first_steps=timed.first_steps,
        phases={name: np.array([report.phases[name] for report in reports]).T.tolist() for name in names},
        between_epochs_seconds=statistics.median(reports[0].between_epochs_seconds or [0.0]),
        processes=[Process(report.threads, host=report.host) for report in reports],
        gradient_bytes=reports[0].gradient_bytes,
        memory_bytes=memory_bytes,
    )


def summarize_training(spec: TrainingSpec, reports: Sequence[WorkerReport]) -> Training:
    """Return the result of a whole training. Raises DivergedError, and WorkerError if replicas differ."""
    check_reports(reports)
    sums = zip(*(report.epoch_loss_sums for report in reports), strict=True)
    return Training(
        seed=spec.config.seed,
        seconds=max(report.seconds for report in reports),
        epoch_losses=[sum(of_epoch) / spec.config.train_samples for of_epoch in sums],
        test_accuracy=reports[0].test_accuracy,
        epoch_accuracies=reports[0].epoch_accuracies,
        parameters_sha256=reports[0].parameters_sha256[0],
    )


def check_reports(reports: Sequence[WorkerReport], arm: str = "") -> None:
    """Raise DivergedError if a loss is not finite, WorkerError if replicas did not end with the same parameters."""
    prefix = f"{arm}: " if arm else ""
    if not all(math.isfinite(loss) for report in reports for loss in report.epoch_loss_sums):
        raise DivergedError(f"{prefix}diverged: a loss is not a finite number; try a smaller optimizer.lr")
    hashes = [sha256 for report in reports for sha256 in report.parameters_sha256]
    if ranks := [rank for rank, sha256 in enumerate(hashes) if sha256 != hashes[0]]:
        raise WorkerError(f"{prefix}replicas differ at the end: ranks {ranks} do not have rank 0's parameters")
