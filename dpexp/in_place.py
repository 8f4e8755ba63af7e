"""Gradients of large linear layers, computed straight into the memory where other workers read them.

Autograd always makes a new tensor. Here it is kept from computing the weight's gradient; a hook on the layer's output
does so, with `out=`. A Python function in its graph would do as well, but cost three times as much a step.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from dpexp.kernels import large_layers


class InPlaceGradients:
    """Of one model: what its large linear layers would add to their weights' `.grad`, written into given places."""

    def __init__(self, model: nn.Module, places: Mapping[torch.Tensor, torch.Tensor]) -> None:
        """`places` has a tensor of the same shape for each parameter. Layers with a kernel of their own stay alone."""
        self._places = places
        self._in_backward = False
        for layer in large_layers(model):
            weight = layer.weight
            hooked = weight._backward_hooks or weight._post_accumulate_grad_hooks  # autograd alone calls them
            if weight in places and not hooked:
                layer.__class__ = _Linear
                assert isinstance(layer, _Linear)
                layer.gradients, layer.own_weight = self, (weight,)

    def backward(self, loss: torch.Tensor, factor: torch.Tensor) -> None:
        """`loss.backward(factor)`: the only backward pass that fills the places."""
        self._in_backward = True
        try:
            loss.backward(factor)
        finally:
            self._in_backward = False

    def add(self, weight: torch.Tensor, inputs: torch.Tensor, gradient: torch.Tensor) -> None:
        """To the weight's `.grad`, which is its place unless autograd has made one before: gradient^T inputs.

        `gradient` (n, out) is that of the layer's output, `inputs` (n, in) are the layer's.
        """
        if not self._in_backward:  # the model looks at derivatives itself
            if torch.is_grad_enabled():
                raise RuntimeError("a large linear layer under sync_dp can be differentiated once only")
            return
        if weight.grad is None:
            weight.grad = torch.mm(gradient.t(), inputs, out=self._places[weight])
        else:
            weight.grad.addmm_(gradient.t(), inputs)


class _Linear(nn.Linear):
    """nn.Linear with its weight's gradient computed by `gradients`."""

    gradients: InPlaceGradients
    own_weight: tuple[torch.Tensor]  # in a tuple, since a module would register it under a second name

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """See nn.Linear."""
        weight, bias = self.weight, self.bias
        if (
            input.dim() != 2
            or not torch.is_grad_enabled()
            or torch.is_autocast_enabled("cpu")
            or not weight.requires_grad
            or weight is not self.own_weight[0]  # somebody calls the layer with another one
            or not (input.requires_grad or (bias is not None and bias.requires_grad))  # no graph to hook into
        ):
            return F.linear(input, weight, bias)
        output = F.linear(input, weight.detach(), bias)
        inputs = input.detach()
        output.register_hook(lambda gradient: self.gradients.add(weight, inputs, gradient))
        return output
