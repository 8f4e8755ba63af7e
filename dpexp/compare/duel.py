"""Two configurations, measured in turns of milliseconds: which is faster, and by how much?"""

from __future__ import annotations

import functools
import math
import time
from dataclasses import dataclass
from pathlib import Path

from dpexp.analysis.intervals import Estimate
from dpexp.analysis.speedup import Pairs, is_calm, ratio_of_times
from dpexp.config.experiment import ExperimentConfig
from dpexp.config.groups import MeasurementConfig
from dpexp.errors import ConfigError, DivergedError
from dpexp.launchers.local import LocalLauncher
from dpexp.measurement.blocks import OnProgress
from dpexp.measurement.job import check_machine, prepared
from dpexp.measurement.trainer import Variant
from dpexp.results.schema import Training

SHARED = ("model", "data", "seed", "dtype", "device", "linear_kernel", "measurement", "launch")  # of both commands
STOPPED_LEVEL = 0.975  # of an interval that decided when to stop; see analysis.intervals


@dataclass(frozen=True)
class Duel:
    """The time of the second over that of the first; `is_calm`: of undisturbed trainings."""

    change: Estimate
    is_calm: bool


def duel(first: ExperimentConfig, second: ExperimentConfig, folder: Path, on_progress: OnProgress) -> Duel:
    """Measure both in turns, for the same samples.

    Blocks are added until it is known to `measurement.precision` of the first, or its time is over. `folder` receives
    what scripts write. Raises ConfigError, DataError, WorkerError, DivergedError.
    """
    _check(first, second)
    for config in (first, second):
        check_machine(config)
    variants = {"first": Variant(first), "second": Variant(second)}
    pairs: list[tuple[Training, Training]] = []
    with prepared(first, folder, LocalLauncher()) as trainer:
        trainer.get_ready(first, ())
        started, discarded = time.monotonic(), first.measurement.warmup
        while not _enough(first.measurement, pairs, time.monotonic() - started):
            trainer.place_anew()
            trainings = trainer.train_in_turns(
                {name: variants[name] for name in sorted(variants, reverse=len(pairs) % 2 == 1)},
                on_turn=functools.partial(on_progress, f"block {len(pairs) + 1}"),
            )
            if discarded:
                discarded -= 1
                continue
            if any(None in training.epoch_losses for training in trainings.values()):
                raise DivergedError("diverged: a loss is not a finite number; try a smaller optimizer.lr")
            pairs.append((trainings["second"], trainings["first"]))
    return Duel(ratio_of_times(pairs, STOPPED_LEVEL), is_calm(pairs))


def _enough(measurement: MeasurementConfig, pairs: Pairs, seconds: float) -> bool:
    """Whether these pairs, which took so long, suffice."""
    if len(pairs) < max(2, measurement.repeats):
        return False
    precise = ratio_of_times(pairs, STOPPED_LEVEL).precision <= (measurement.precision or math.inf)
    return precise or seconds * (1 + 1 / len(pairs)) > measurement.max_seconds


def _check(first: ExperimentConfig, second: ExperimentConfig) -> None:
    """Raise ConfigError where the two can't take turns, or do different work."""
    for name in SHARED:
        values = getattr(first, name), getattr(second, name)
        if values[0] != values[1]:
            shown = [getattr(value, "name", value) for value in values]
            what = f"other settings of {name}" if shown[0] == shown[1] else f"{name}={shown[0]} against {shown[1]}"
            raise ConfigError(f"{what}: both commands must train the same model on the same data, measured alike")
    visited = [config.epochs * config.train_samples for config in (first, second)]
    if visited[0] != visited[1]:
        raise ConfigError(f"{visited[0]:,} samples against {visited[1]:,}: both commands must visit the same number")
