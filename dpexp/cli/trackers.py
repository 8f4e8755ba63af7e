"""Experiment trackers: each job's settings and figures, logged when its result is on disk."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dpexp.config.groups import MlflowConfig, TensorboardConfig, TrackerConfig, WandbConfig
from dpexp.config.job import JobConfig
from dpexp.errors import ConfigError, TrackerError, one_line
from dpexp.results.series import flattened

if TYPE_CHECKING:
    from dpexp.analysis.row import Row


@dataclass(frozen=True)
class Logged:
    """What a tracker logs of a job."""

    name: str  # the last two parts of the job's folder
    settings: dict[str, str | int | float | bool]  # by dotted name
    figures: dict[str, float]  # the columns of results.csv that are known numbers


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
    if config.tracker.name == "none":
        return
    settings = flattened(config.settings)
    logged = Logged(
        "/".join(folder.parts[-2:]),
        {name: value if isinstance(value, str | int | float) else str(value) for name, value in settings.items()},
        {
            name: float(value)
            for name, value in row.columns().items()
            if isinstance(value, int | float) and math.isfinite(value)
        },
    )
    try:
        match config.tracker:
            case TensorboardConfig() as tracker:
                _tensorboard(tracker, logged)
            case MlflowConfig() as tracker:
                _mlflow(tracker, logged)
            case WandbConfig() as tracker:
                _wandb(tracker, logged)
    except Exception as error:  # of somebody else's library, of its server
        raise TrackerError(f"tracker={config.tracker.name} did not log {folder}: {one_line(error)}") from error


def _tensorboard(config: TensorboardConfig, logged: Logged) -> None:
    """Hyperparameters and scalars, in an event file of their own."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(Path(config.folder) / logged.name.replace("/", "_"))) as writer:
        writer.add_hparams(logged.settings, logged.figures, run_name=".")


def _mlflow(config: MlflowConfig, logged: Logged) -> None:
    """A finished run, beside any that the calling program has."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    if config.uri.startswith("sqlite:///"):
        Path(config.uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    client = MlflowClient(config.uri)
    experiment = client.get_experiment_by_name(config.experiment)
    number = client.create_experiment(config.experiment) if experiment is None else experiment.experiment_id
    run = client.create_run(number, run_name=logged.name)
    client.log_batch(
        run.info.run_id,
        metrics=[Metric(name, value, run.info.start_time, 0) for name, value in logged.figures.items()],
        params=[Param(name, str(value)) for name, value in logged.settings.items()],
    )
    client.set_terminated(run.info.run_id)


def _wandb(config: WandbConfig, logged: Logged) -> None:
    """A finished run, beside any that the calling program has."""
    import wandb

    Path(config.folder).mkdir(parents=True, exist_ok=True)
    with wandb.init(
        project=config.project,
        name=logged.name,
        dir=config.folder,
        mode="offline",
        config=logged.settings,
        settings=wandb.Settings(silent=True, reinit="create_new"),
    ) as run:
        run.summary.update(logged.figures)
