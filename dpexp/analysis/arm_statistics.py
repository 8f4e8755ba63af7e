"""The statistics of one arm: its steps, and the times of a whole training that follow from them."""

import functools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dpexp.analysis.efficiency import SecondsByPhase
from dpexp.analysis.estimate import Estimate
from dpexp.analysis.ratio_estimate import PooledLog, pool_step_seconds
from dpexp.config.job import JobConfig
from dpexp.phases import PHASES
from dpexp.results.schema import Arm, Block, Training

MIN_RECORDED = 6  # recorded steps that are needed to know the phases


@dataclass(frozen=True)
class ArmStatistics:
    """The statistics of one arm: of its steps of at most `limit` seconds in some blocks, and of its whole trainings."""

    config: JobConfig
    blocks: Sequence[Block]
    arm_name: str
    limit: float
    trainings: Sequence[Training]
    all_blocks: Sequence[Block]  # `blocks`, and those that are too disturbed to count

    @property
    def arms(self) -> list[Arm]:
        """The arm in all blocks, including blocks that are too disturbed to count."""
        return [block.arms[self.arm_name] for block in self.all_blocks]

    @property
    def samples_per_step(self) -> int:
        """The samples of a step, of all processes together."""
        return self.blocks[0].arms[self.arm_name].samples_per_step

    @property
    def threads(self) -> int:
        """The threads of each process; a script may set its own number."""
        return self.blocks[0].arms[self.arm_name].threads

    @property
    def received_samples(self) -> float:
        """The mean number of samples that a script's model receives in a step of one process; 0 if unknown."""
        samples = [process.samples for block in self.blocks for process in block.arms[self.arm_name].processes]
        return statistics.fmean(samples) if all(samples) else 0.0

    @property
    def exchanges_gradients(self) -> bool:
        """Whether a script's model is wrapped to exchange gradients."""
        return any(process.exchanges for block in self.blocks for process in block.arms[self.arm_name].processes)

    @property
    def memory_bytes(self) -> int | None:
        """The peak memory of all processes together; None if it was not measured."""
        sizes = [block.arms[self.arm_name].memory_bytes for block in self.all_blocks]
        return max((size for size in sizes if size is not None), default=None)

    @property
    def steps(self) -> float:
        """The steps of a training: its samples over those of a step. A smaller last batch counts as a fraction."""
        return self.config.epochs * self.config.train_samples / self.samples_per_step

    @functools.cached_property
    def log_step_seconds(self) -> PooledLog:
        """The log of the seconds of a step."""
        return pool_step_seconds(self.blocks, self.arm_name, self.limit)

    @property
    def step_seconds(self) -> float:
        """The seconds of a step."""
        return math.exp(self.log_step_seconds.log)

    @property
    def between_epochs_seconds(self) -> float:
        """The time of a training that belongs to no step."""
        between = statistics.median(block.arms[self.arm_name].between_epochs_seconds for block in self.blocks)
        return self.config.epochs * between

    @property
    def seconds(self) -> Estimate:
        """The time of a training: its steps, and the time between epochs."""
        return self._training(self.log_step_seconds)

    @property
    def overall_seconds(self) -> Estimate:
        """The time of a training, with all time counted."""
        return self._training(pool_step_seconds(self.all_blocks, self.arm_name))

    @property
    def trained_seconds(self) -> float:
        """The mean time of whole trainings; NaN without any."""
        return mean_of_known([training.seconds for training in self.trainings])

    @property
    def test_accuracy(self) -> float:
        """The mean test accuracy of whole trainings; NaN without any."""
        return mean_of_known([training.test_accuracy for training in self.trainings])

    @functools.cached_property
    def phases(self) -> list[SecondsByPhase]:
        """The seconds of a step by phase, for each process; [] if too few steps were recorded.

        They are means over recorded steps up to the limit (over all, if too few are that short), scaled to
        `step_seconds`, because recording takes time.
        """
        arms = [block.arms[self.arm_name] for block in self.blocks if block.arms[self.arm_name].phases]
        if not arms:
            return []
        known = [phase for phase in PHASES if all(phase in arm.phases for arm in arms)]
        table = np.concatenate([np.stack([np.asarray(arm.phases[phase]) for phase in known], 2) for arm in arms])
        if len(table) < MIN_RECORDED:
            return []
        short = table.sum(2).mean(1) <= self.limit  # `table` has shape (steps, processes, phases)
        means = table[short if short.sum() >= MIN_RECORDED else slice(None)].mean(0)
        total = means.sum(1).mean()
        if total <= 0:
            return []
        means *= self.step_seconds / total
        return [dict(zip(known, process.tolist(), strict=True)) for process in means]

    @property
    def compute_seconds(self) -> tuple[float, ...]:
        """The compute seconds of one process in each of its recorded steps; () if unknown."""
        arms = [block.arms[self.arm_name].phases.get("compute", []) for block in self.blocks]
        return tuple(step[0] for steps in arms for step in steps)

    def _training(self, step: PooledLog) -> Estimate:
        steps, between = step.estimate().scaled(self.steps), self.between_epochs_seconds
        return Estimate(steps.value + between, steps.low + between, steps.high + between)


def mean_of_known(values: Sequence[float | None]) -> float:
    """The mean of the values that are not None; NaN if there is none."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else math.nan
