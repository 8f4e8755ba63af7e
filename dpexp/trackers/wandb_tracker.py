"""A job as a run of Weights & Biases."""

from __future__ import annotations

from pathlib import Path

from dpexp.config.groups import WandbConfig
from dpexp.trackers.tracking import Logged


def log(config: WandbConfig, logged: Logged) -> None:
    """Log a finished run, beside any that the calling program has."""
    import wandb

    Path(config.folder).mkdir(parents=True, exist_ok=True)
    with wandb.init(
        project=config.project,
        name=logged.name,
        dir=config.folder,
        mode="offline",
        config=dict(logged.settings),
        settings=wandb.Settings(silent=True, reinit="create_new"),
    ) as run:
        run.summary.update(dict(logged.figures))
