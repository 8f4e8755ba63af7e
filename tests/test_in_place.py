"""Gradients that are computed in place are those that autograd computes."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import tiny

from dpexp.models import architectures
from dpexp.strategies.in_place import write_in_place

LARGE = {
    "mlp": (["model=mlp", "model.hidden=[256,256]"], (1, 12, 12)),
    "cnn": (["model=cnn", "model.channels=[16]", "model.hidden=128"], (1, 12, 12)),
    "resnet18": (["model=resnet18"], (3, 8, 8)),
}


def placed(model):
    """The model with a place for each gradient, and these places."""
    places = {parameter: torch.full_like(parameter, 7.0).detach() for parameter in model.parameters()}
    write_in_place(model, places)
    return places


def gradients(model, inputs):
    model(inputs).square().mean().backward()
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize(("overrides", "shape"), LARGE.values(), ids=LARGE)
def test_gradients_are_those_of_autograd(overrides, shape):
    torch.manual_seed(0)
    plain = architectures.build(tiny(*overrides).model, shape, 100)
    model = copy.deepcopy(plain)
    placed(model)
    for _ in range(2):
        inputs = torch.rand(5, *shape)
        theirs = gradients(plain, inputs)
        torch.testing.assert_close(gradients(model, inputs), theirs)
        for own in (plain, model):
            own.zero_grad()


@pytest.mark.parametrize(("overrides", "shape"), LARGE.values(), ids=LARGE)
def test_the_largest_linear_gradient_is_written_where_it_is_wanted_without_a_copy(overrides, shape):
    model = architectures.build(tiny(*overrides).model, shape, 100)
    places = placed(model)
    gradients(model, torch.rand(5, *shape))
    weight = max((one.weight for one in model.modules() if isinstance(one, torch.nn.Linear)), key=torch.numel)
    assert weight.grad is places[weight]


def test_evaluating_leaves_no_trace():
    model = architectures.build(tiny(*LARGE["mlp"][0]).model, LARGE["mlp"][1], 100)
    placed(model)
    with torch.no_grad():
        model(torch.rand(5, *LARGE["mlp"][1]))
    assert all(parameter.grad is None for parameter in model.parameters())
