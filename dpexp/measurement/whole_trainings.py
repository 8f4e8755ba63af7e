"""Which whole trainings a job makes, and how much of its time they need."""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from dpexp.config.built_in import BuiltInConfig
from dpexp.config.job import JobConfig
from dpexp.measurement.trainer import ArmSteps
from dpexp.results.schema import Block

SHORT_SHARE = 0.6  # by default, whole trainings are run if they take no more than this share of the job's time
START_SECONDS = 0.3  # to start the processes of a whole training, and to evaluate it


class WholeTrainings:
    """The whole trainings of a job, if they were asked for or are short."""

    def __init__(self, config: JobConfig) -> None:
        self._short_seconds = SHORT_SHARE * (config.measurement.max_seconds or config.default_max_seconds[0])
        self._seeds = 1
        self._trained: dict[str, BuiltInConfig] = {}  # empty for a script: the length of its training is unknown
        is_requested = False
        if isinstance(config, BuiltInConfig):
            self._trained = config.whole_training_configs
            is_requested = config.checkpoint or config.target_accuracy is not None
            self._seeds = 1 if config.target_accuracy is None else config.measurement.repeats
        self._are_wanted = is_requested or config.measurement.whole_trainings == "always"
        # Kept free in the job's time; requested trainings take additional time. None: not yet known.
        self._reserved_seconds = None if config.measurement.whole_trainings == "auto" and not is_requested else 0.0

    def reserve_seconds(self, warm: Mapping[str, ArmSteps]) -> float:
        """Return the seconds reserved for whole trainings, from the first block's arms after their warm-up.

        The shortest steps decide whether the trainings are short: other programs may have slowed down the warm-up.
        """
        if self._reserved_seconds is None:
            warmup = {
                name: min(config.measurement.warmup_steps, config.updates) for name, config in self._trained.items()
            }
            steps = [(config.updates + warmup[name], warm[name]) for name, config in self._trained.items()]
            min_seconds = sum(START_SECONDS + updates * timed.min_step_seconds for updates, timed in steps)
            expected_seconds = sum(START_SECONDS + updates * timed.step_seconds for updates, timed in steps)
            self._are_wanted = min_seconds <= self._short_seconds
            self._reserved_seconds = min(expected_seconds, self._short_seconds) if self._are_wanted else 0.0
        return self._reserved_seconds

    def configs(self) -> Iterator[tuple[int, str, BuiltInConfig]]:
        """Yield each training with its number and arm; with a target accuracy, there is one per seed."""
        for number in range(self._seeds if self._are_wanted else 0):
            for name, config in self._trained.items():
                yield number, name, dataclasses.replace(config, seed=(config.seed + number) % 2**32)


def arm_steps(block: Block) -> dict[str, ArmSteps]:
    """Return how long a step of each arm takes, from a finished block."""
    return {
        name: ArmSteps(
            step_seconds=float(np.median(arm.all_step_seconds)), min_step_seconds=float(arm.all_step_seconds.min())
        )
        for name, arm in block.arms.items()
    }
