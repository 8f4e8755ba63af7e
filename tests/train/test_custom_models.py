"""Models as users have them: token ids, unused parameters, sparse gradients."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from basics import TINY, composed, tiny
from training_helpers import assert_same, trained_state

from dpexp.errors import ConfigError, WorkerError
from dpexp.launchers.local import LocalLauncher
from dpexp.train.data.dataset import load
from dpexp.train.models.architectures import build_model
from dpexp.train.models.initial_state import initial_state
from dpexp.train.worker import TrainingSpec, evaluate


def tokens(tmp_path, *overrides):
    """A job of token ids that no float32 can hold."""
    ids = np.arange(101 * 5).reshape(101, 5) + 2**24 + 1
    labels = np.arange(101) % 3
    path = tmp_path / "tokens.npz"
    np.savez(path, train_inputs=ids, train_labels=labels, test_inputs=ids, test_labels=labels)
    settings = [text for text in TINY if not text.startswith(("data", "model")) or text == "data.size=101"]
    model = ["model=custom", "model.builder=user_models:of_tokens", "+model.arguments.vocabulary=8"]
    return composed("data=arrays", f"data.path={path}", *settings, *model, *overrides)


@pytest.mark.parametrize("strategy", ["sync_dp", "emulated", "ddp"])
def test_models_of_token_ids_train_alike(tmp_path, strategy):
    expected = trained_state(tokens(tmp_path, "strategy=sequential"), tmp_path)
    assert_same(trained_state(tokens(tmp_path, f"strategy={strategy}", "workers=2"), tmp_path), expected, 1e-12)


def test_sparse_gradients_are_refused(tmp_path):
    config = tokens(tmp_path, "+model.arguments.sparse=true")
    with pytest.raises(ConfigError, match="has sparse gradients; build its embeddings with sparse=False"):
        initial_state(config, load(config))


def test_a_model_whose_backward_pass_fails_is_refused():
    config = tiny("model=custom", "model.builder=user_models:changed_in_place")
    with pytest.raises(ConfigError, match=r"model=custom can't train on .*modified by an inplace operation"):
        initial_state(config, load(config))


def test_evaluating_a_model_keeps_the_modes_of_its_layers():
    config = tiny()
    model = build_model(config.model, (4,), 3, torch.float64)
    frozen = next(model.children()).eval()
    evaluate(model, SimpleNamespace(tensors={"test_inputs": torch.zeros(2, 4).double(), "test_labels": torch.zeros(2)}))
    assert (model.training, frozen.training) == (True, False)


def test_ddp_names_the_setting_for_unused_parameters():
    config = tiny("strategy=ddp", "workers=2", "model=custom", "model.builder=user_models:sometimes_unused")
    dataset = load(config)
    spec = TrainingSpec(config, dataset, initial_state(config, dataset))
    with pytest.raises(WorkerError, match=r"set strategy\.find_unused_parameters=true"):
        LocalLauncher().run(spec)


@pytest.mark.parametrize("strategy", ["sync_dp", "emulated", "ddp"])
def test_constants_keep_their_type(tmp_path, strategy):
    model = ["model=custom", "model.builder=user_models:complex_numbers", "dtype=float32", "workers=2"]
    state = trained_state(tiny(*model, f"strategy={strategy}"), tmp_path)
    assert (state["turn"].dtype, state["precise"].dtype) == (torch.complex64, torch.float64)
    assert state["turn"].equal(torch.polar(torch.ones(8), torch.arange(8.0)))


def test_weights_of_another_type_than_the_gradients_are_refused_by_name():
    model = ["model=custom", "model.builder=user_models:complex_numbers", "+model.arguments.trained=true"]
    config = tiny(*model)
    with pytest.raises(ConfigError, match="has the parameter turn of complex64: gradients are exchanged as float64"):
        initial_state(config, load(config))
