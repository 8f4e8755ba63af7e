"""Experiment trackers: each job's settings and figures, logged when its result is on disk."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dpexp.config.groups import MlflowConfig, TensorboardConfig, TrackerConfig, WandbConfig
from dpexp.config.job import JobConfig, flattened
from dpexp.errors import ConfigError, TrackerError, one_line

if TYPE_CHECKING:
    from dpexp.analysis.row import Row

Settings = dict[str, str | int | float | bool]
"""Of a job, by dotted name."""
Figures = dict[str, float]
"""The columns of results.csv that are known numbers."""


def check(config: TrackerConfig) -> None:
    """Raise ConfigError for a tracker whose package, which has its name, is missing."""
    if config.name == "none":
        return
    spec = importlib.util.find_spec(config.name)
    if spec is None or spec.origin is None:  # a mere folder has no origin
        raise ConfigError(
            f"tracker={config.name} needs the package {config.name}: pip install {config.name}, or tracker=none"
        )


def log(config: JobConfig, row: Row, folder: Path) -> None:
    """Log the job of this folder with the configured tracker, if any. Raises TrackerError."""
    name = "/".join(folder.parts[-2:])
    settings: Settings = {
        key: value if isinstance(value, str | int | float) else str(value)
        for key, value in flattened(config.settings).items()
    }
    known = {key: value for key, value in row.columns().items() if isinstance(value, int | float)}
    figures = {key: float(value) for key, value in known.items() if math.isfinite(value)}
    try:
        if config.tracker.name != "none":
            _LOGGERS[config.tracker.name](config.tracker, name, settings, figures)
    except Exception as error:  # of somebody else's library, of its server
        raise TrackerError(f"tracker={config.tracker.name} did not log {folder}: {one_line(error)}") from error


def _tensorboard(config: TensorboardConfig, name: str, settings: Settings, figures: Figures) -> None:
    """Hyperparameters and scalars, in an event file of their own."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(Path(config.folder) / name.replace("/", "_"))) as writer:
        writer.add_hparams(settings, figures, run_name=".")


def _mlflow(config: MlflowConfig, name: str, settings: Settings, figures: Figures) -> None:
    """A finished run, beside any that the calling program has."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    if config.uri.startswith("sqlite:///"):
        Path(config.uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    client = MlflowClient(config.uri)
    experiment = client.get_experiment_by_name(config.experiment)
    number = client.create_experiment(config.experiment) if experiment is None else experiment.experiment_id
    run = client.create_run(number, run_name=name)
    client.log_batch(
        run.info.run_id,
        metrics=[Metric(key, value, run.info.start_time, 0) for key, value in figures.items()],
        params=[Param(key, str(value)) for key, value in settings.items()],
    )
    client.set_terminated(run.info.run_id)


def _wandb(config: WandbConfig, name: str, settings: Settings, figures: Figures) -> None:
    """A finished run, beside any that the calling program has."""
    import wandb

    Path(config.folder).mkdir(parents=True, exist_ok=True)
    project, folder = config.project, config.folder
    quiet = wandb.Settings(silent=True, reinit="create_new")
    with wandb.init(project=project, name=name, dir=folder, mode="offline", config=settings, settings=quiet) as run:
        run.summary.update(figures)


_LOGGERS: dict[str, Callable[..., None]] = {"tensorboard": _tensorboard, "mlflow": _mlflow, "wandb": _wandb}
