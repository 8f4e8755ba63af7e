"""A job as hyperparameters and scalars of TensorBoard."""

from __future__ import annotations

from pathlib import Path

from dpexp.config.groups import TensorboardConfig
from dpexp.trackers.tracking import Logged


def log(config: TensorboardConfig, logged: Logged) -> None:
    """Write an event file of its own."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(Path(config.folder) / logged.name.replace("/", "_"))) as writer:
        writer.add_hparams(dict(logged.settings), dict(logged.figures), run_name=".")
