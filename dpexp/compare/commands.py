"""Two configurations, measured in turns of milliseconds: which is faster, and by how much?"""

from __future__ import annotations

from pathlib import Path

from dpexp.analysis.ratios import Comparison, compare
from dpexp.config.job import JobConfig
from dpexp.errors import ConfigError
from dpexp.launchers.local import LocalLauncher
from dpexp.measurement.budget import Budget
from dpexp.measurement.job import prepared
from dpexp.measurement.measure import OnProgress, measure
from dpexp.measurement.trainer import Variant

SHARED = ("data", "seed", "measurement", "launch", "model", "dtype", "device", "linear_kernel")  # of both commands
BEFORE, AFTER = "before", "after"


def compare_commands(first: JobConfig, second: JobConfig, folder: Path, on_progress: OnProgress) -> Comparison:
    """The time of the second over that of the first, for the same samples, measured in turns.

    Blocks are added until it is known to `measurement.precision` of the first, or its time is over. `folder` receives
    what scripts write. Raises ConfigError, DataError, WorkerError, DivergedError.
    """
    _check(first, second)
    variants = {BEFORE: Variant(first), AFTER: Variant(second)}
    settings = first.measurement
    with prepared(first, folder, LocalLauncher()) as trainer:
        trainer.get_ready(first, ())
        budget = Budget(settings, first.usual_seconds, over=AFTER, of=BEFORE)
        blocks = measure(trainer, variants, budget, settings.warmup_steps, settings.warmup, on_progress=on_progress)
        return compare([[block for block in blocks if not block.warmup]], over=AFTER, of=BEFORE)


def _check(first: JobConfig, second: JobConfig) -> None:
    """Raise ConfigError where the two can't take turns, or do different work."""
    for name in SHARED:
        values = getattr(first, name, "that of a script"), getattr(second, name, "that of a script")
        if values[0] != values[1]:
            shown = [getattr(value, "name", value) for value in values]
            what = f"other settings of {name}" if shown[0] == shown[1] else f"{name}={shown[0]} against {shown[1]}"
            raise ConfigError(f"{what}: both commands must train the same model on the same data, measured alike")
    visited = [config.epochs * config.train_samples for config in (first, second)]
    if visited[0] != visited[1]:
        raise ConfigError(f"{visited[0]:,} samples against {visited[1]:,}: both commands must visit the same number")
