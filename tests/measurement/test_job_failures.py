"""Custom models, and jobs that fail."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
from basics import tiny
from fault_helpers import run_config
from training_helpers import WHOLE, measured

from dpexp.config.job import CANDIDATE
from dpexp.errors import ConfigError, DivergedError, WorkerError
from dpexp.launchers.local import LocalLauncher
from dpexp.measurement.built_in_trainer import BuiltInTrainer
from dpexp.results import storage
from dpexp.train.data.dataset import load
from dpexp.train.models.initial_state import initial_state


def test_ones_own_model_is_trained(tmp_path):
    own = ["model=custom", "model.builder=user_models:own_model", "+model.arguments.width=5"]
    assert measured(tmp_path, *own, WHOLE).trainings[CANDIDATE][0].epoch_losses[-1] is not None


def test_a_model_of_the_wrong_shape_is_a_config_error():
    config = tiny("model=custom", "model.builder=user_models:too_wide")
    with pytest.raises(ConfigError, match=r"returns \(2, 4\); it must be logits of shape \(2, 3\)"):
        initial_state(config, load(config))


def test_a_builder_that_raises_is_a_config_error():
    config = tiny("model=custom", "model.builder=user_models:own_model")
    with pytest.raises(ConfigError, match="missing 1 required positional argument: 'width'"):
        initial_state(config, load(config))


def test_a_failing_worker_is_recorded_with_its_traceback(tmp_path):
    config = tiny("model=custom", "model.builder=user_models:break_in_training")
    with pytest.raises(WorkerError, match="RuntimeError: no such luck"):
        run_config(config, tmp_path)
    recorded = storage.read(tmp_path / storage.FILE_NAME)
    assert recorded.status == "failed"
    assert "no such luck" in recorded.error
    assert "break_in_training" in recorded.details


@pytest.mark.parametrize("settings", [[WHOLE], [], ["data.size=200000"]], ids=["whole", "epochs", "part of an epoch"])
def test_a_diverged_training_is_marked(tmp_path, settings):
    """Whether it is seen in a whole training, in epochs of a segment, or in a segment that is shorter than one."""
    with pytest.raises(DivergedError, match="not a finite number"):
        run_config(tiny("optimizer.lr=1e300", *settings), tmp_path)
    recorded = storage.read(tmp_path / storage.FILE_NAME)
    assert recorded.status == "diverged"
    assert "not a finite number" in recorded.error


def test_a_training_that_diverges_in_its_last_epochs_is_marked(monkeypatch, tmp_path):
    correct = LocalLauncher.run

    def run(launcher, spec):
        return [dataclasses.replace(report, epoch_loss_sums=[1.0, math.inf]) for report in correct(launcher, spec)]

    monkeypatch.setattr(LocalLauncher, "run", run)
    with pytest.raises(DivergedError):
        run_config(tiny(WHOLE), tmp_path)
    assert storage.read(tmp_path / storage.FILE_NAME).status == "diverged"


LEAVING = ["workers=2", "model=custom", "model.builder=user_models:leave_the_group"]


def test_replicas_that_part_fail_the_run(tmp_path):
    with pytest.raises(WorkerError, match=r"replicas differ at the end: ranks \[1\]"):
        measured(tmp_path, *LEAVING)


def test_replicas_that_part_fail_a_whole_training_too():
    config = tiny(*LEAVING)
    with pytest.raises(WorkerError, match=r"replicas differ at the end: ranks \[1\]"):
        BuiltInTrainer(config, LocalLauncher()).train(config, None)


def test_too_few_file_descriptors_are_a_worker_error(tmp_path):
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_now = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 20, limit[1]))
    try:
        with pytest.raises(WorkerError, match=r"workers=24 can't be started: Too many open files"):
            measured(tmp_path, "workers=24", "measurement.baseline=none")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
