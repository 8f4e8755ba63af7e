"""Optimizers as plain updates of given tensors, by torch's own functional implementations.

`torch.optim.Optimizer.step` spends more time in Python per step than a small model's whole update takes.
Every update here is elementwise, but for the norm that clipping needs, so an optimizer may own any slice of the
parameters.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from dpexp.config.groups import AdamConfig, OptimizerConfig, SgdConfig


class Optimizer(ABC):
    """Updates `parameters` in place; equal to the torch.optim class of the same name.

    A parameter that no sample used has a gradient of zeros here, as in any flat layout of gradients:
    momentum and weight decay go on. (torch.optim skips a parameter whose gradient is None.)
    """

    def __init__(self, config: SgdConfig | AdamConfig, parameters: Sequence[torch.Tensor]) -> None:
        self.lr = config.lr  # of the next update
        self.parameters = [parameter.detach() for parameter in parameters]
        self.clip_norm = config.clip_norm

    def step(self, gradients: list[torch.Tensor], squared_norm: torch.Tensor | None = None) -> None:
        """One update, from a gradient for each parameter. `squared_norm` (), that of all gradients, where these are a
        slice of them.

        Clipping is that of torch.nn.utils.clip_grad_norm_ (Pascanu et al. 2013); it changes `gradients`.
        """
        if self.clip_norm is not None:
            norm = (squared_norms(gradients) if squared_norm is None else squared_norm).sqrt()
            torch._foreach_mul_(gradients, (self.clip_norm / (norm + 1e-6)).clamp(max=1.0))
        self._update(gradients)

    @abstractmethod
    def _update(self, gradients: list[torch.Tensor]) -> None:
        """The same, of gradients that are clipped."""


class Sgd(Optimizer):
    """torch.optim.SGD."""

    def __init__(self, config: SgdConfig, parameters: Sequence[torch.Tensor]) -> None:
        super().__init__(config, parameters)
        self._config = config
        self._momentum_buffers: list[torch.Tensor | None] = [None] * len(parameters)

    def _update(self, gradients: list[torch.Tensor]) -> None:
        sgd(
            self.parameters,
            gradients,
            self._momentum_buffers,
            foreach=False,
            lr=self.lr,
            momentum=self._config.momentum,
            dampening=0.0,
            weight_decay=self._config.weight_decay,
            nesterov=self._config.nesterov,
            maximize=False,
        )


class Adam(Optimizer):
    """torch.optim.Adam, or AdamW."""

    def __init__(self, config: AdamConfig, parameters: Sequence[torch.Tensor]) -> None:
        super().__init__(config, parameters)
        self._config = config
        self._means = [torch.zeros_like(parameter) for parameter in self.parameters]
        self._squares = [torch.zeros_like(parameter) for parameter in self.parameters]
        self._steps = [torch.zeros((), dtype=torch.float32, device=p.device) for p in self.parameters]

    def _update(self, gradients: list[torch.Tensor]) -> None:
        adam(
            self.parameters,
            gradients,
            self._means,
            self._squares,
            [],
            self._steps,
            fused=True,
            lr=self.lr,
            beta1=self._config.betas[0],
            beta2=self._config.betas[1],
            eps=self._config.eps,
            weight_decay=self._config.weight_decay,
            decoupled_weight_decay=self._config.name == "adamw",
            amsgrad=False,
            maximize=False,
        )


def build(config: OptimizerConfig, parameters: Sequence[torch.Tensor]) -> Optimizer:
    """The configured optimizer over `parameters`, its state fresh."""
    return Sgd(config, parameters) if isinstance(config, SgdConfig) else Adam(config, parameters)


def squared_norms(gradients: list[torch.Tensor]) -> torch.Tensor:
    """The square of the norm (), of all gradients together."""
    return torch.stack(torch._foreach_norm(gradients)).square().sum()


def take_gradients(parameters: Sequence[torch.nn.Parameter]) -> list[torch.Tensor]:
    """The parameters' gradients, zeros where there is none, taken off the parameters."""
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    for parameter in parameters:
        parameter.grad = None
    return gradients
