"""Gradients that are multiplied late are those that autograd computes."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import tiny

from dpexp.models import architectures
from dpexp.strategies import late_gradients

LARGE = {
    "mlp": (["model=mlp", "model.hidden=[256,256]"], (1, 12, 12)),
    "cnn": (["model=cnn", "model.channels=[16]", "model.hidden=128"], (1, 12, 12)),
    "resnet18": (["model=resnet18"], (3, 8, 8)),
}


def postponed(model):
    """The late gradients of the model's large layers."""
    return dict(late_gradients.postpone(model))


def gradients(model, inputs, late=()):
    """All of them; those that are `late` in two pieces, the second one added to what is there."""
    model(inputs).square().mean().backward()
    found = []
    for parameter in model.parameters():
        if parameter in late:
            assert parameter.grad is None
            place, cut = torch.zeros_like(parameter).detach(), len(parameter) // 3
            for rows, adds in ((slice(0, cut), False), (slice(cut, len(parameter)), True)):
                late[parameter].write(place[rows], rows, adds)
            late[parameter].clear()
        found.append(place if parameter in late else parameter.grad)
    return found


@pytest.mark.parametrize(("overrides", "shape"), LARGE.values(), ids=LARGE)
def test_gradients_are_those_of_autograd(overrides, shape):
    torch.manual_seed(0)
    plain = architectures.build(tiny(*overrides).model, shape, 100)
    model = copy.deepcopy(plain)
    late = postponed(model)
    assert late
    for _ in range(2):
        inputs = torch.rand(5, *shape)
        theirs = gradients(plain, inputs)
        torch.testing.assert_close(gradients(model, inputs, late), theirs)
        for own in (plain, model):
            own.zero_grad()


def test_earlier_parts_of_a_batch_go_to_the_weight_as_autograds_would():
    model = torch.nn.Sequential(torch.nn.Linear(200, 200))
    plain, late = copy.deepcopy(model), postponed(model)[model[0].weight]
    first, second, third = torch.rand(3, 5, 200)
    for part in (first, second, third):
        model(part).square().sum().backward()
    for part in (first, second):
        plain(part).square().sum().backward()
    torch.testing.assert_close(model[0].weight.grad, plain[0].weight.grad)
    plain(third).square().sum().backward()
    late.write(model[0].weight.grad, None, adds=True)
    torch.testing.assert_close(model[0].weight.grad, plain[0].weight.grad)


def test_evaluating_leaves_no_trace():
    model = architectures.build(tiny(*LARGE["mlp"][0]).model, LARGE["mlp"][1], 100)
    late = postponed(model)
    with torch.no_grad():
        model(torch.rand(5, *LARGE["mlp"][1]))
    for weight, gradient in late.items():
        with pytest.raises(AssertionError):
            gradient.write(torch.empty_like(weight), None, adds=False)
    assert all(parameter.grad is None for parameter in model.parameters())
