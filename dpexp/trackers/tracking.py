"""One job's settings and figures, for any tracker; which tracker logs them."""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from dpexp.config.experiment import ExperimentConfig
from dpexp.config.groups import MlflowConfig, NoTrackerConfig, TensorboardConfig, TrackerConfig, WandbConfig
from dpexp.errors import ConfigError, TrackerError, one_line

if TYPE_CHECKING:
    from dpexp.analysis.row import Row

# The module that logs, and the package that it needs.
_TRACKERS: dict[type, tuple[str, str]] = {
    TensorboardConfig: ("tensorboard", "tensorboard"),
    MlflowConfig: ("mlflow", "mlflow"),
    WandbConfig: ("wandb", "wandb"),
}


@dataclass(frozen=True)
class Logged:
    """What a tracker logs of a job."""

    name: str  # the last two parts of the job's folder
    settings: Mapping[str, str | int | float | bool]  # by dotted name
    figures: Mapping[str, float]  # the columns of results.csv that are known numbers

    @classmethod
    def of(cls, config: ExperimentConfig, row: Row, folder: Path) -> Logged:
        """A job and its row."""
        figures = {
            name: float(value)
            for name, value in row.columns().items()
            if isinstance(value, int | float) and math.isfinite(value)
        }
        return cls("/".join(folder.parts[-2:]), dict(_flat(config.settings)), figures)


class Tracker(Protocol):
    """A module that logs."""

    def log(self, config: TrackerConfig, logged: Logged) -> None:
        """Write one job."""


def check(config: TrackerConfig) -> None:
    """Raise ConfigError for a tracker whose package is missing."""
    if isinstance(config, NoTrackerConfig):
        return
    _, package = _TRACKERS[type(config)]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:  # a mere folder has no origin
        raise ConfigError(f"tracker={config.name} needs the package {package}: pip install {package}, or tracker=none")


def log(config: ExperimentConfig, row: Row, folder: Path) -> None:
    """Log the job of this folder with the configured tracker, if any. Raises TrackerError."""
    if isinstance(config.tracker, NoTrackerConfig):
        return
    module, _ = _TRACKERS[type(config.tracker)]
    try:
        tracker: Tracker = importlib.import_module(f"dpexp.trackers.{module}_tracker")
        tracker.log(config.tracker, Logged.of(config, row, folder))
    except Exception as error:  # of somebody else's library, of its server
        raise TrackerError(f"tracker={config.tracker.name} did not log {folder}: {one_line(error)}") from error


def _flat(values: Mapping[str, object], prefix: str = "") -> list[tuple[str, str | int | float | bool]]:
    flat: list[tuple[str, str | int | float | bool]] = []
    for name, value in values.items():
        if isinstance(value, dict):
            flat += _flat(value, f"{prefix}{name}.")
        else:
            flat.append((f"{prefix}{name}", value if isinstance(value, str | int | float | bool) else str(value)))
    return flat
