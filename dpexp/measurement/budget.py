"""How long a job measures: how many blocks, and for how long each."""

import math
import time
from collections.abc import Sequence

from dpexp.analysis.ratio_estimate import BLOCK_STD, compare, estimate_turns_ratio
from dpexp.config.job import JobConfig
from dpexp.measurement.rounds import Rounds
from dpexp.measurement.whole_trainings import WholeTrainings
from dpexp.results.schema import Block

MIN_JOB_ROUNDS = 24  # if the time limit for short steps is too short for so many, the limit for long steps applies
CHECK_EVERY_ROUNDS = 8
MIN_BLOCK_STEPS = 32  # steps of each arm; if there is no time for them, there are fewer blocks than `repeats`
MIN_BLOCKS_LEFT = 1.5  # times the cost of a start: with at least this much time left, another block is started
END_SECONDS = 0.3  # to end the arms of a block, and to write the result


class Budget:
    """The wall time of one job, from its start."""

    def __init__(
        self, config: JobConfig, baseline: str | None, candidate: str, whole_trainings: WholeTrainings | None = None
    ) -> None:
        """`precision` refers to the ratio of these arms; without a baseline, it is ignored."""
        self._whole_trainings = whole_trainings
        self.measurement, self._baseline, self._candidate = config.measurement, baseline, candidate
        self.seconds, self._seconds_of_long_steps = config.default_max_seconds
        if config.measurement.max_seconds is not None:
            self.seconds = self._seconds_of_long_steps = config.measurement.max_seconds
        self._started = time.monotonic()
        self._reserved_seconds = 0.0  # for whole trainings, after the blocks
        self._overhead_seconds = 0.0  # time of a block without its rounds

    @property
    def done_fraction(self) -> float:
        """The fraction of the time that has passed."""
        return min(1.0, (time.monotonic() - self._started) / self.seconds)

    def exclude_seconds(self, seconds: float) -> None:
        """Don't count these seconds, such as those of a block that failed and is repeated without an arm."""
        self._started += seconds

    def begin_rounds(self, rounds: Rounds, start_seconds: float) -> None:
        """Called when the arms of a block are warm, `start_seconds` after it began."""
        is_first, self._overhead_seconds = not self._overhead_seconds, start_seconds + END_SECONDS
        if is_first and 2 * self._overhead_seconds + MIN_JOB_ROUNDS * rounds.round_seconds > self.seconds:
            self.seconds = self._seconds_of_long_steps
        if self._whole_trainings is not None:
            self._reserved_seconds = self._whole_trainings.reserve_seconds(rounds.timed)

    def block_is_long_enough(self, rounds: Rounds, blocks: Sequence[Block], seconds: float) -> bool:
        """Whether a block needs no more rounds; they have taken `seconds` so far.

        It is long enough when a new block would give more information than further rounds (Kalibera and Jones 2013,
        "Rigorous benchmarking in reasonable time").
        """
        left = self._left_seconds() - END_SECONDS
        if left <= 0:
            return True
        missing = max(self.measurement.repeats - len(blocks), 1)
        min_seconds = max(self._overhead_seconds, MIN_BLOCK_STEPS * rounds.step_seconds)
        fewer = self.measurement.is_adaptive  # else exactly `repeats` blocks are made
        while fewer and missing > 1 and self._seconds_per_block(left + seconds, missing) < min_seconds:
            missing -= 1
        if seconds >= self._seconds_per_block(left + seconds, missing):
            return True
        if rounds.timed_rounds % CHECK_EVERY_ROUNDS or self._baseline is None or not self.measurement.is_adaptive:
            return False
        if left < MIN_BLOCKS_LEFT * self._overhead_seconds:
            return False  # too short for another block: use it here
        ratio = estimate_turns_ratio(rounds.timed[self._baseline].turns, rounds.timed[self._candidate].turns)
        assert ratio is not None
        variance = ratio.variance * seconds
        return seconds >= math.sqrt(self._overhead_seconds * variance) / BLOCK_STD

    def _seconds_per_block(self, seconds: float, blocks: int) -> float:
        """Return the seconds for the rounds of each of `blocks` blocks, the first of which has started."""
        return (seconds - (blocks - 1) * self._overhead_seconds) / blocks

    def is_over(self, blocks: Sequence[Block]) -> bool:
        """Whether to stop: the ratio is precise enough, or there is too little time for another block."""
        measurement = self.measurement
        if not blocks:
            return False
        if not measurement.is_adaptive:
            return len(blocks) >= measurement.repeats
        is_missing = len(blocks) < measurement.repeats
        if self._left_seconds() < (1.0 if is_missing else MIN_BLOCKS_LEFT) * self._overhead_seconds:
            return True
        if is_missing:
            return False
        assert self._baseline is not None
        assert measurement.precision is not None
        return compare([blocks], self._baseline, self._candidate).shown.precision <= measurement.precision

    def _left_seconds(self) -> float:
        return self.seconds - self._reserved_seconds - (time.monotonic() - self._started)
