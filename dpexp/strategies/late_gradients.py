"""Gradients of large linear layers' weights, multiplied late: when it is known where each of their rows is wanted.

Autograd always makes a new tensor, which would have to be copied, and added to the other workers'. Here a hook on the
layer's output keeps both factors of the product, until the strategy lets some rows of it be written where other workers
read them, and the others be added to the sum of the other workers'. So the inputs of these layers live until the
exchange. That is correct for the models that dpexp builds, which call each layer once and use no gradients themselves.
Gradients of other models are copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import nn

from dpexp.models.linear_kernels import large_layers


class LateGradient:
    """The gradient of one weight, of the samples of the last backward pass."""

    def __init__(self, weight: torch.Tensor) -> None:
        self._weight = weight
        self._factors: tuple[torch.Tensor, torch.Tensor] | None = None

    def keep(self, gradient: torch.Tensor, inputs: torch.Tensor) -> None:
        """The factors: of the layer's output (n, out), and its inputs (n, in). Earlier ones go to `weight.grad`."""
        if self._factors is not None:  # a part of the batch came before
            adds = self._weight.grad is not None
            if self._weight.grad is None:
                self._weight.grad = torch.empty_like(self._weight)
            self.write(self._weight.grad, None, adds)
        self._factors = gradient, inputs

    def write(self, place: torch.Tensor, rows: slice | None, adds: bool) -> None:
        """Multiply the gradient of these rows (None: of all) into `place` (rows, in), or add it to what is there."""
        assert self._factors is not None, "a layer of dpexp's models is used in every step"
        gradient, inputs = self._factors
        chosen = gradient.t() if rows is None else gradient.t()[rows]
        if adds:
            place.addmm_(chosen, inputs)
        else:
            torch.mm(chosen, inputs, out=place)

    def clear(self) -> None:
        """Forget the factors."""
        self._factors = None


def postpone(
    model: nn.Module, known: Callable[[torch.Tensor], None] = lambda weight: None
) -> Iterator[tuple[torch.Tensor, LateGradient]]:
    """Let autograd leave out the weights of large linear layers in a model that dpexp built; yields each with its own.

    `known` is called with a weight whose gradient can be written, as autograd would call a hook of the weight. Layers
    that use oneDNN are not changed: it can't write where it is told to, and takes longer for some rows at a time.
    """
    for layer in large_layers(model):
        layer.__class__ = _Linear
        assert isinstance(layer, _Linear)
        layer.known, layer.late = known, LateGradient(layer.weight)
        yield layer.weight, layer.late


class _Linear(nn.Linear):
    """nn.Linear that is called at most once before each backward pass."""

    late: LateGradient
    known: Callable[[torch.Tensor], None]

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As nn.Linear.forward."""
        if not torch.is_grad_enabled():
            return super().forward(input)
        assert input.dim() == 2
        assert self.bias is not None  # the output has a history even where its input has none
        output = F.linear(input, self.weight.detach(), self.bias)

        def keep(gradient: torch.Tensor) -> None:
            self.late.keep(gradient, input.detach())
            self.known(self.weight)

        output.register_hook(keep)
        return output
