"""Optimizers as plain updates of given tensors, by torch's own functional implementations.

`torch.optim.Optimizer.step` spends more time in Python per step than a small model's whole update takes.
Every update here is elementwise, so an optimizer may own any slice of the parameters.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from dpexp.config import AdamConfig, OptimizerConfig, SgdConfig


class Optimizer(ABC):
    """Updates `parameters` in place; equal to the torch.optim class of the same name."""

    def __init__(self, parameters: Sequence[torch.Tensor]) -> None:
        self.parameters = [parameter.detach() for parameter in parameters]

    def step(self, gradients: Sequence[torch.Tensor | None]) -> None:
        """One update. A parameter whose gradient is None had no part in the loss and stays."""
        self._update([index for index, gradient in enumerate(gradients) if gradient is not None], gradients)

    @abstractmethod
    def _update(self, used: list[int], gradients: Sequence[torch.Tensor | None]) -> None:
        """Update the parameters at the indices `used`."""


class Sgd(Optimizer):
    """torch.optim.SGD."""

    def __init__(self, config: SgdConfig, parameters: Sequence[torch.Tensor]) -> None:
        super().__init__(parameters)
        self._config = config
        self._momentum_buffers: list[torch.Tensor | None] = [None] * len(parameters)

    def _update(self, used: list[int], gradients: Sequence[torch.Tensor | None]) -> None:
        buffers = [self._momentum_buffers[index] for index in used]
        sgd(
            [self.parameters[index] for index in used],
            _present(used, gradients),
            buffers,
            foreach=False,
            lr=self._config.lr,
            momentum=self._config.momentum,
            dampening=0.0,
            weight_decay=self._config.weight_decay,
            nesterov=self._config.nesterov,
            maximize=False,
        )
        for index, buffer in zip(used, buffers, strict=True):
            self._momentum_buffers[index] = buffer


class Adam(Optimizer):
    """torch.optim.Adam, or AdamW."""

    def __init__(self, config: AdamConfig, parameters: Sequence[torch.Tensor]) -> None:
        super().__init__(parameters)
        self._config = config
        self._means = [torch.zeros_like(parameter) for parameter in self.parameters]
        self._squares = [torch.zeros_like(parameter) for parameter in self.parameters]
        self._steps = [torch.zeros((), dtype=torch.float32) for _ in self.parameters]

    def _update(self, used: list[int], gradients: Sequence[torch.Tensor | None]) -> None:
        adam(
            [self.parameters[index] for index in used],
            _present(used, gradients),
            [self._means[index] for index in used],
            [self._squares[index] for index in used],
            [],
            [self._steps[index] for index in used],
            fused=True,
            lr=self._config.lr,
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


def _present(used: list[int], gradients: Sequence[torch.Tensor | None]) -> list[torch.Tensor]:
    return [gradient for index in used if (gradient := gradients[index]) is not None]
