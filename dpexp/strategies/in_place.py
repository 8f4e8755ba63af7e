"""Gradients of large linear layers, computed straight into the memory where other workers read them.

Autograd always makes a new tensor, which would have to be copied. Here autograd does not compute the weight's gradient;
a hook on the layer's output does, with `out=`. That is correct for the models that dpexp builds, which call each layer
once and use no gradients themselves. Gradients of other models are copied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import nn

from dpexp.models.linear_kernels import large_layers


def write_in_place(
    model: nn.Module,
    places: Mapping[torch.Tensor, torch.Tensor],
    adds: bool = False,
    written: Callable[[torch.Tensor], None] = lambda weight: None,
) -> None:
    """Let each large linear layer of a model that dpexp built write its weight's gradient into `places[weight]`.

    That tensor, of the weight's shape, becomes its `.grad`; then `written` is called, as autograd would call a hook of
    the weight. With `adds`, the gradient is added to what is there. Layers that use oneDNN are not changed.
    """
    for layer in large_layers(model):
        layer.__class__ = _Linear
        assert isinstance(layer, _Linear)
        layer.place, layer.adds, layer.written = places[layer.weight], adds, written


class _Linear(nn.Linear):
    """nn.Linear that is called at most once before each backward pass."""

    place: torch.Tensor
    adds: bool
    written: Callable[[torch.Tensor], None]

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As nn.Linear.forward."""
        if not torch.is_grad_enabled():
            return F.linear(input, self.weight, self.bias)
        assert input.dim() == 2
        assert self.bias is not None  # the output has a history even where its input has none
        output = F.linear(input, self.weight.detach(), self.bias)

        def write(gradient: torch.Tensor) -> None:
            if self.adds or self.weight.grad is not None:  # that of other samples is there
                self.place.addmm_(gradient.t(), input)
            else:
                torch.mm(gradient.t(), input, out=self.place)
            self.weight.grad = self.place
            self.written(self.weight)

        output.register_hook(write)
        return output
