"""Batch normalization over the samples of all workers, on CPUs, too, where torch's SyncBatchNorm refuses to work.

Each worker sends the mean and the squared deviations of its samples, and all combine them as Chan, Golub and LeVeque do
("Algorithms for computing the sample variance", 1983). Backward needs two more sums over all workers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from dpexp.errors import ConfigError

Gather = Callable[[torch.Tensor], torch.Tensor]
"""Of each rank's vector (n,), those of all ranks (w, n) in rank order. All ranks call it together."""


def check(model: nn.Module) -> None:
    """Raise ConfigError where the model has no batch normalization that can be synchronized."""
    layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
    if not layers:
        raise ConfigError("batch.sync_batchnorm=true: the model has no torch.nn.BatchNorm layer; leave it out")
    for layer in layers:
        if type(layer).forward is not _BatchNorm.forward:
            raise ConfigError(
                f"batch.sync_batchnorm=true: {type(layer).__name__} has a forward() different from that of "
                "torch.nn.BatchNorm, which would be replaced; move it into a layer of its own"
            )


def synchronize(model: nn.Module, gather: Gather) -> None:
    """Let each batch normalization of the model use the mean and variance of the samples of all ranks."""
    for layer in model.modules():
        if isinstance(layer, _BatchNorm):
            layer.forward = functools.partial(_forward, layer, gather)  # type: ignore[method-assign]


def _forward(layer: _BatchNorm, gather: Gather, input: torch.Tensor) -> torch.Tensor:
    """As the layer's own forward, with statistics of all ranks' samples (n, channels, ...) while it trains."""
    if not layer.training:  # one rank alone evaluates
        return type(layer).forward(layer, input)
    channels = input.shape[1]
    weight = input.new_ones(channels) if layer.weight is None else layer.weight
    bias = input.new_zeros(channels) if layer.bias is None else layer.bias
    output, mean, variance, count = _Normalize.apply(input, weight, bias, layer.eps, gather)
    if layer.track_running_stats and layer.running_mean is not None:
        assert layer.running_var is not None
        share = layer.momentum
        if layer.num_batches_tracked is not None:
            layer.num_batches_tracked.add_(1)
            share = 1 / layer.num_batches_tracked.item() if share is None else share
        layer.running_mean.lerp_(mean, share or 0.0)
        layer.running_var.lerp_(variance * (count / (count - 1)), share or 0.0)  # the unbiased one
    assert isinstance(output, torch.Tensor)
    return output


class _Normalize(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias, and the mean, the variance and the number of all samples."""

    @staticmethod
    def forward(
        ctx: Any, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, gather: Gather
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        channels, across = input.shape[1], _across(input)
        mean = input.mean(across)
        squares = (input - _broad(mean, input)).square().sum(across)
        count = input.new_tensor([input.numel() / channels])
        means, squares, counts = gather(torch.cat([mean, squares, count])).split([channels, channels, 1], 1)
        total = counts.sum()
        mean = (means * counts).sum(0) / total
        variance = (squares + counts * (means - mean).square()).sum(0) / total
        inverse = torch.rsqrt(variance + eps)
        normal = (input - _broad(mean, input)) * _broad(inverse, input)
        ctx.save_for_backward(normal, inverse * weight, total)
        ctx.gather = gather
        ctx.mark_non_differentiable(mean, variance, total)
        return torch.addcmul(_broad(bias, input), normal, _broad(weight, input)), mean, variance, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Of this rank's input, weight and bias; what reaches the input through mean and variance is all ranks'."""
        normal, scale, total = ctx.saved_tensors
        across = _across(normal)
        of_bias, of_weight = gradient.sum(across), (gradient * normal).sum(across)
        through_mean, through_variance = ctx.gather(torch.cat([of_bias, of_weight])).sum(0).div(total).chunk(2)
        of_input = gradient - _broad(through_mean, normal) - normal * _broad(through_variance, normal)
        return of_input * _broad(scale, normal), of_weight, of_bias, None, None


def _across(input: torch.Tensor) -> list[int]:
    """All dimensions but the channels'."""
    return [0, *range(2, input.dim())]


def _broad(values: torch.Tensor, input: torch.Tensor) -> torch.Tensor:
    """Values (channels,) in a shape that can be combined with the input."""
    return values.view(1, -1, *[1] * (input.dim() - 2))
