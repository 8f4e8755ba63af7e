"""Optimizers as plain updates of given tensors, with torch's functional implementations.

`torch.optim.Optimizer.step` spends more time in Python per step than a small model's whole update takes.
Every update here is elementwise, so an optimizer may own any slice of the parameters.
"""

import functools
from collections.abc import Callable, Sequence

import torch
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from dpexp.config.groups import AdamConfig, OptimizerConfig, SgdConfig


class Optimizer:
    """Updates `parameters` in place from a fresh state, as the configured class of torch.optim does."""

    def __init__(self, config: OptimizerConfig, lr: float, parameters: Sequence[torch.Tensor]) -> None:
        updated = [parameter.detach() for parameter in parameters]
        update = _sgd(config, updated) if isinstance(config, SgdConfig) else _adam(config, updated)
        self._update = functools.partial(update, lr=lr)

    def step(self, gradients: list[torch.Tensor]) -> None:
        """Make one update, from a gradient for each parameter."""
        self._update(gradients)


def _sgd(config: SgdConfig, parameters: list[torch.Tensor]) -> Callable[..., None]:
    return functools.partial(
        sgd,
        parameters,
        momentum_buffer_list=[None] * len(parameters),
        foreach=False,
        momentum=config.momentum,
        dampening=0.0,
        weight_decay=config.weight_decay,
        nesterov=config.nesterov,
        maximize=False,
    )


def _adam(config: AdamConfig, parameters: list[torch.Tensor]) -> Callable[..., None]:
    return functools.partial(
        adam,
        parameters,
        exp_avgs=[torch.zeros_like(parameter) for parameter in parameters],
        exp_avg_sqs=[torch.zeros_like(parameter) for parameter in parameters],
        max_exp_avg_sqs=[],
        state_steps=[torch.zeros((), dtype=torch.float32) for _ in parameters],
        fused=True,
        beta1=config.betas[0],
        beta2=config.betas[1],
        eps=config.eps,
        weight_decay=config.weight_decay,
        decoupled_weight_decay=config.name == "adamw",
        amsgrad=False,
        maximize=False,
    )


def take_gradients(parameters: Sequence[torch.nn.Parameter]) -> list[torch.Tensor]:
    """Return the parameters' gradients, zeros if there is none, and remove them from the parameters."""
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    for parameter in parameters:
        parameter.grad = None
    return gradients
