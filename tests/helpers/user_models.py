"""Models as users write them, some with faults. Workers import this when they start: it is light."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal

import torch
from torch import nn


def break_in_training(input_shape, classes):
    """A user's model that works in the parent's trial and fails in a worker."""
    if multiprocessing.parent_process() is not None:
        raise RuntimeError("no such luck")
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))


def linear(input_shape, classes):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, classes))


def own_model(input_shape, classes, width):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, width), torch.nn.Linear(width, classes))


def too_wide(input_shape, classes):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, classes + 1))


def with_batchnorm(input_shape, classes):
    """Over pixels and over features, with and without weights, with two kinds of running statistics."""
    return torch.nn.Sequential(
        torch.nn.Conv2d(input_shape[0], 3, 2),
        torch.nn.BatchNorm2d(3),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(27, 7),
        torch.nn.BatchNorm1d(7, affine=False, momentum=None),
        torch.nn.ReLU(),
        torch.nn.Linear(7, 6),
        torch.nn.BatchNorm1d(6, track_running_stats=False),
        torch.nn.Linear(6, classes),
    )


def leave_the_group(input_shape, classes):
    """A model whose second replica, after the start, trains parameters of its own."""

    class Deserter(torch.nn.Sequential):
        def forward(self, inputs):
            if multiprocessing.current_process().name == "dpexp-1":
                for parameter in self.parameters():
                    parameter.data = parameter.data.clone()
            return super().forward(inputs)

    return Deserter(torch.nn.Flatten(), torch.nn.Linear(16, classes))


def with_an_unused_layer(input_shape, classes):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, classes))
    model.register_module("unused", torch.nn.Linear(3, 3))
    model.forward = lambda inputs: model[1](model[0](inputs))
    for parameter in model[1].parameters():
        parameter.requires_grad = parameter.dim() > 1  # the bias is frozen
    return model


def with_a_backward_of_its_own(input_shape, classes):
    """A model that adds a loss of its own to the gradients while it computes its output."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 5), torch.nn.Linear(5, classes))

    def backward(module, inputs):
        if torch.is_grad_enabled():
            module[1].weight.square().sum().backward()

    model.register_forward_pre_hook(backward)
    return model


def mortal(input_shape, classes, victim):
    """A linear model that kills its own process, a worker of rank `victim`, when it trains."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, classes))

    def die(*_):
        if multiprocessing.parent_process() is not None and os.environ.get("RANK") == str(victim):
            os.kill(os.getpid(), signal.SIGKILL)

    model.register_forward_pre_hook(die)
    return model


class _Slope(nn.Module):
    """Looks at a derivative, and learns by the derivative of that."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(inputs, 200), nn.Linear(inputs, classes)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            inputs = inputs.flatten(1).clone().requires_grad_()
            (slope,) = torch.autograd.grad(self.first(inputs).tanh().sum(), inputs, create_graph=True)
        output: torch.Tensor = self.last(slope)
        return output


def of_a_derivative(shape: tuple[int, ...], classes: int) -> nn.Module:
    return _Slope(math.prod(shape), classes)


def exits(input_shape, classes):
    raise SystemExit(3)


def lazy(input_shape, classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))


def frozen(input_shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), classes)).requires_grad_(False)


def sometimes_unused(input_shape, classes):
    """A model that uses its second layer in every other step."""
    model = torch.nn.ModuleList([torch.nn.Linear(16, classes), torch.nn.Linear(16, classes)])

    class Alternating(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.calls = model, 0

        def forward(self, inputs):
            self.calls += 1
            return self.layers[self.calls % 2](inputs.flatten(1))

    return Alternating()


def of_tokens(input_shape, classes, vocabulary, sparse=False):
    """A model of token ids, the largest of which no float32 can hold."""

    class Tokens(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = torch.nn.EmbeddingBag(8, 4, sparse=sparse)
            self.last = torch.nn.Linear(4, classes)

        def forward(self, inputs):
            assert inputs.dtype == torch.int64
            return self.last(self.embedding(inputs % vocabulary))

    return Tokens()


def exits_in_forward(input_shape, classes):
    class Exits(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3))

        def forward(self, inputs):
            raise SystemExit(4)

    return Exits()


def without_gradients(input_shape, classes):
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(math.prod(input_shape), classes)

        def forward(self, inputs):
            with torch.no_grad():
                return self.layer(inputs.flatten(1))

    return Frozen()


def starts_with_nan(input_shape, classes):
    model = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), classes))
    nn.init.constant_(model[1].weight, math.nan)
    return model


def raises_keyboard_interrupt(input_shape, classes):
    raise KeyboardInterrupt


class Turned(nn.Module):
    """Complex numbers as a constant or, with `trained`, as weights; and a constant of higher precision."""

    def __init__(self, classes, trained):
        super().__init__()
        turn = torch.polar(torch.ones(8), torch.arange(8.0))
        if trained:
            self.turn = nn.Parameter(turn)
        else:
            self.register_buffer("turn", turn)
        self.register_buffer("precise", torch.tensor(0.1, dtype=torch.float64))
        self.head = nn.Linear(16, classes)

    def forward(self, inputs):
        pairs = torch.view_as_complex(inputs.flatten(1).unflatten(1, (8, 2)).contiguous())
        return self.head(torch.view_as_real(pairs * self.turn).flatten(1).to(inputs.dtype))


def complex_numbers(input_shape, classes, trained=False):
    return Turned(classes, trained)


def with_dropout(input_shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, classes))


class ChangedInPlace(nn.Linear):
    def forward(self, inputs):
        outputs = torch.sigmoid(super().forward(inputs.flatten(1)))
        product = outputs * outputs
        outputs.mul_(2)
        return product


def changed_in_place(input_shape, classes):
    return ChangedInPlace(math.prod(input_shape), classes)
