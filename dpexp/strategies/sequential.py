"""One process, one worker: the baseline, and what one worker of data parallelism amounts to."""

from __future__ import annotations

from typing import Any

from torch import nn

from dpexp import optimizers
from dpexp.config import ExperimentConfig
from dpexp.shared_memory import SharedTensors
from dpexp.strategies.base import Replica, Strategy


class Sequential(Strategy):
    """Plain training: the gradient of the one replica is the gradient."""

    name = "sequential"

    def __init__(
        self, config: ExperimentConfig, rank: int, model: nn.Module, initial: SharedTensors, shared: Any
    ) -> None:
        self.replicas = (Replica(0, model),)
        self._config = config
        self._initial = initial

    @classmethod
    def processes(cls, workers: int) -> int:
        """One."""
        return 1

    def start(self) -> None:
        """Load the initial state; see Strategy."""
        model = self.replicas[0].model
        model.load_state_dict(self._initial)
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._optimizer = optimizers.build(self._config.optimizer, self._parameters)

    def update(self) -> None:
        """One optimizer update; see Strategy."""
        self._optimizer.step(optimizers.take_gradients(self._parameters))
