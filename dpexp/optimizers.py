"""From an optimizer's config to a torch optimizer over given parameters."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from dpexp.config import OptimizerConfig, SgdConfig


def build(config: OptimizerConfig, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """An optimizer whose update is elementwise, so that it may own any slice of the parameters."""
    if isinstance(config, SgdConfig):
        return torch.optim.SGD(
            parameters,
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.nesterov,
        )
    kind: type[torch.optim.Adam | torch.optim.AdamW] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[
        config.name
    ]
    return kind(parameters, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay)
