"""One side of a comparison: the steps of an arm, and what follows from them for a whole training."""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from dpexp.analysis.efficiency import Seconds, phases_of_step
from dpexp.analysis.intervals import Estimate
from dpexp.analysis.ratios import Pooled, step_seconds
from dpexp.config.job import JobConfig
from dpexp.results.schema import Block, Training


@dataclass(frozen=True)
class Side:
    """An arm of some blocks, of whose steps those up to `limit` seconds count; and its whole trainings."""

    config: JobConfig
    blocks: Sequence[Block]
    arm: str
    limit: float
    trainings: Sequence[Training]
    every: Sequence[Block] = ()  # with blocks whose steps were too disturbed to count; none where that is no other

    @property
    def samples_per_step(self) -> int:
        """Of all processes together."""
        return self.blocks[0].arms[self.arm].samples_per_step

    @property
    def steps(self) -> float:
        """Of a training: its samples over those of a step. A smaller last batch counts as a part of one."""
        return self.config.epochs * self.config.train_samples / self.samples_per_step

    @property
    def step_seconds(self) -> float:
        """Of a step."""
        return math.exp(self._step.log)

    @property
    def seconds(self) -> Estimate:
        """Of a training: its steps, and what lies between epochs."""
        return self._training(self._step)

    @property
    def seconds_as_it_is(self) -> Estimate:
        """The same, with all time counted."""
        every = step_seconds(self.every or self.blocks, self.arm)
        assert every is not None
        return self._training(every)

    @property
    def threads(self) -> set[int]:
        """Of its processes."""
        return {process.threads for block in self.blocks for process in block.arms[self.arm].processes}

    @functools.cached_property
    def phases(self) -> list[Seconds]:
        """Of each process where the seconds of a step go; [] where that is unknown."""
        return phases_of_step(self.blocks, self.arm, self.limit, self.step_seconds)

    @property
    def compute_seconds(self) -> tuple[float, ...]:
        """Of one process, in each of its recorded steps; () where that is unknown."""
        found = [block.arms[self.arm].phases.get("compute", []) for block in self.blocks]
        return tuple(step[0] for steps in found for step in steps)

    @functools.cached_property
    def _step(self) -> Pooled:
        found = step_seconds(self.blocks, self.arm, self.limit)
        assert found is not None
        return found

    def _training(self, step: Pooled) -> Estimate:
        between = statistics.median(block.arms[self.arm].between_epochs_seconds for block in self.blocks)
        value, low, high = (
            self.steps * seconds + self.config.epochs * between for seconds in dataclasses.astuple(step.estimate())
        )
        return Estimate(value, low, high)
