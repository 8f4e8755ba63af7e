"""Linear layers by another kernel compute what torch.nn.Linear computes."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import tiny
from torch import nn
from torch.nn.utils import prune

from dpexp.train.models import linear_kernels

WIDTH = 200  # squared: a layer large enough to be adopted

needs_onednn = pytest.mark.skipif(not linear_kernels.onednn_available(), reason="this torch has no oneDNN")


class Twice(nn.Module):
    """One weight, used two times in a forward pass."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, inputs):
        return self.linear(self.linear(inputs).relu())


MODELS = {
    "two layers": lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH, bias=False)),
    "one weight used twice": Twice,
}


def gradients(model, inputs):
    model(inputs).square().mean().backward()
    return [parameter.grad for parameter in model.parameters()]


@needs_onednn
@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS.keys())
def test_outputs_and_gradients_are_those_of_torch(build):
    torch.manual_seed(0)
    plain = build()
    model = copy.deepcopy(plain)
    linear_kernels.use(model, "onednn")
    inputs = torch.rand(5, WIDTH)
    torch.testing.assert_close(model(inputs), plain(inputs))
    torch.testing.assert_close(gradients(model, inputs), gradients(plain, inputs))


def multiplies_by_onednn(layer):
    return type(layer) is linear_kernels.Linear


def test_a_layer_is_replaced_under_each_of_its_names_and_the_state_stays_the_same():
    model = nn.ModuleDict({"one": MODELS["two layers"]()})
    model["other"] = model["one"][2]
    before = dict(model.state_dict(keep_vars=True))
    linear_kernels.use(model, "onednn")
    assert all(multiplies_by_onednn(layer) for layer in (model["one"][0], model["one"][2], model["other"]))
    after = model.state_dict(keep_vars=True)
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)


@needs_onednn
def test_a_copy_of_a_model_multiplies_by_its_own_weights():
    """As where one process plays all workers."""
    model, inputs = MODELS["two layers"](), torch.rand(5, WIDTH)
    linear_kernels.use(model, "onednn")
    other, before = copy.deepcopy(model), model(inputs)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    assert not other(inputs).any()
    torch.testing.assert_close(model(inputs), before)


def test_layers_whose_weight_is_computed_are_left_alone():
    model = nn.Sequential(prune.random_unstructured(nn.Linear(WIDTH, WIDTH), "weight", 0.5))
    linear_kernels.use(model, "onednn")
    assert not multiplies_by_onednn(model[0])


def test_small_layers_are_left_alone():
    model = nn.Sequential(nn.Linear(3, 3))
    linear_kernels.use(model, "onednn")
    assert not multiplies_by_onednn(model[0])


def test_the_configured_kernel_is_taken_without_a_timing():
    assert linear_kernels.choose(tiny("dtype=float32", "linear_kernel=onednn"), MODELS["two layers"]()) == "onednn"


def test_double_precision_is_left_to_torch():
    assert linear_kernels.choose(tiny("dtype=float64"), MODELS["two layers"]()) == "torch"


def test_a_timing_chooses_one_of_the_kernels_and_keeps_to_it():
    config, model = tiny("dtype=float32"), MODELS["two layers"]()
    assert linear_kernels.choose(config, model) in ("torch", "onednn")
    assert linear_kernels.choose(config, model) == linear_kernels.choose(config, model)
