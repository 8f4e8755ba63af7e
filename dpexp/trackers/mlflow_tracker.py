"""A job as a run of MLflow."""

from __future__ import annotations

from pathlib import Path

from dpexp.config.groups import MlflowConfig
from dpexp.trackers.tracking import Logged


def log(config: MlflowConfig, logged: Logged) -> None:
    """Log a finished run, beside any that the calling program has."""
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
