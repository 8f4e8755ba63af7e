"""A job as a run of MLflow."""

from __future__ import annotations

from pathlib import Path

from dpexp.config.groups import MlflowConfig
from dpexp.trackers.tracking import Logged


def log(config: MlflowConfig, logged: Logged) -> None:
    """Log a finished run."""
    import mlflow

    if config.uri.startswith("sqlite:///"):
        Path(config.uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    mlflow.set_tracking_uri(config.uri)
    mlflow.set_experiment(config.experiment)
    with mlflow.start_run(run_name=logged.name):
        mlflow.log_params(dict(logged.settings))
        mlflow.log_metrics(dict(logged.figures))
