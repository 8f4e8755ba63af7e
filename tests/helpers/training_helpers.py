"""Train a composed config with the real thing, and look at the parameters it ends with."""

from __future__ import annotations

from pathlib import Path

import torch
from basics import tiny
from fault_helpers import run_config

from dpexp.config.built_in import BuiltInConfig
from dpexp.launchers.local import LocalLauncher
from dpexp.measurement.built_in_trainer import summarize_training
from dpexp.results import storage
from dpexp.train import worker
from dpexp.train.data.dataset import load
from dpexp.train.models.initial_state import initial_state


def trained_state(config: BuiltInConfig, folder: Path) -> dict[str, torch.Tensor]:
    """The state_dict that a training ends with: in fresh processes, if it has several."""
    if config.process_count == 1:
        return trained_here(config, folder)
    checkpoint = folder / f"{config.strategy.name}-{config.workers}.pt"
    dataset = load(config)
    initial = initial_state(config, dataset)
    spec = worker.TrainingSpec(config, dataset, initial, checkpoint=checkpoint)
    summarize_training(spec, LocalLauncher().run(spec))
    return torch.load(checkpoint, weights_only=True)


def trained_here(config: BuiltInConfig, folder: Path) -> dict[str, torch.Tensor]:
    """The same in this process, for strategies of one process: a test's patches apply."""
    checkpoint = folder / f"{config.strategy.name}-{config.workers}.pt"
    dataset = load(config)
    initial = initial_state(config, dataset)
    spec = worker.TrainingSpec(config, dataset, initial, checkpoint=checkpoint)
    worker.run(0, spec, None, None, lambda notice: None)
    return torch.load(checkpoint, weights_only=True)


def assert_same(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    """Raise AssertionError where a parameter differs by more than `tolerance`, relative or absolute."""
    assert actual.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], rtol=tolerance, atol=tolerance, msg=name)


WHOLE = "measurement.whole_trainings=always"
BRIEF = "measurement.max_seconds=0.01"  # a block of the fewest rounds


def measured(folder, *overrides, resume=False):
    """The result of a job."""
    config = tiny(BRIEF, *overrides)
    folder.mkdir(exist_ok=True)
    run_config(config, folder, resume=resume)
    return storage.read(folder / storage.FILE_NAME)
