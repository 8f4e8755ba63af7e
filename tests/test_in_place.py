"""Gradients that are computed in place are those that autograd computes."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from dpexp.in_place import InPlaceGradients

WIDTH = 200  # squared: a layer large enough to be adopted


class Twice(nn.Module):
    """One weight, used two times in a forward pass."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, inputs):
        return self.linear(self.linear(inputs).relu())


class Tied(Twice):
    """One weight, used by its layer and by an operation of torch's."""

    def forward(self, inputs):
        return F.linear(self.linear(inputs), self.linear.weight) + self.linear(inputs)


class Recomputed(Twice):
    """A layer that is computed again in the backward pass."""

    def forward(self, inputs):
        return checkpoint(self.linear, inputs.clone().requires_grad_(), use_reentrant=True)


class Borrowed(Twice):
    """A layer that is called with another weight than its own."""

    def forward(self, inputs):
        weights = {name: 2 * value for name, value in self.linear.named_parameters()}
        return torch.func.functional_call(self.linear, weights, (inputs,))


class Saliency(Twice):
    """A model that looks at a derivative of its own, and goes on without its history."""

    def forward(self, inputs):
        inputs = inputs.clone().requires_grad_()
        (slope,) = torch.autograd.grad(self.linear(inputs).square().sum(), inputs)
        return self.linear(inputs) * slope


class Penalty(Twice):
    """A model whose loss holds a derivative."""

    def forward(self, inputs):
        inputs = inputs.clone().requires_grad_()
        (slope,) = torch.autograd.grad(self.linear(inputs).square().sum(), inputs, create_graph=True)
        return slope


class Sequences(Twice):
    """Inputs of more than two dimensions."""

    def forward(self, inputs):
        return self.linear(inputs.view(1, -1, WIDTH))


class Frozen(Twice):
    """A weight that isn't trained."""

    def __init__(self):
        super().__init__()
        self.linear.weight.requires_grad_(False)


class Unbiased(nn.Module):
    """A layer whose output has no other history than its weight."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, inputs):
        return self.linear(inputs)


def placed(model):
    """The model with a place for each gradient, and these places."""
    places = {parameter: torch.full_like(parameter, 7.0).detach() for parameter in model.parameters()}
    return InPlaceGradients(model, places), places


def gradients(model, backward):
    backward(model(torch.rand(5, WIDTH, generator=torch.Generator().manual_seed(0))).square().mean())
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("build", [Twice, Tied, Recomputed, Borrowed, Saliency, Sequences, Frozen, Unbiased])
def test_gradients_are_those_of_autograd(build):
    torch.manual_seed(0)
    plain = build()
    model = copy.deepcopy(plain)
    ours, _ = placed(model)
    theirs = gradients(plain, lambda loss: loss.backward())
    torch.testing.assert_close(gradients(model, lambda loss: ours.backward(loss, torch.tensor(1.0))), theirs)


def test_a_gradient_is_written_where_it_is_wanted_without_a_copy():
    model = Twice()
    ours, places = placed(model)
    gradients(model, lambda loss: ours.backward(loss, torch.tensor(1.0)))
    assert model.linear.weight.grad is places[model.linear.weight]


def test_a_derivative_of_a_derivative_is_refused_and_not_wrong():
    ours, _ = placed(model := Penalty())
    with pytest.raises(RuntimeError, match="can be differentiated once only"):
        gradients(model, lambda loss: ours.backward(loss, torch.tensor(1.0)))


def test_a_weight_that_somebody_watches_is_left_to_autograd():
    model, seen = Twice(), []
    model.linear.weight.register_hook(seen.append)
    ours, _ = placed(model)
    gradients(model, lambda loss: ours.backward(loss, torch.tensor(1.0)))
    assert len(seen) == 1


def test_what_is_not_trained_leaves_no_trace():
    model = Twice()
    placed(model)
    with torch.no_grad():
        model(torch.rand(5, WIDTH))
    assert model.linear.weight.grad is None
