"""One process plays all workers in turn, as the notebook did, but with correct mathematics.

Its results are what synchronous data parallelism must give; its time is what it costs without parallelism.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from dpexp import optimizers
from dpexp.config import ExperimentConfig
from dpexp.position import COMMUNICATE, UPDATE
from dpexp.shared_memory import SharedTensors
from dpexp.strategies.base import Replica, Strategy


class Emulated(Strategy):
    """Every worker has its own replica and optimizer, all in this process."""

    name = "emulated"

    def __init__(
        self, config: ExperimentConfig, rank: int, model: nn.Module, initial: SharedTensors, shared: Any
    ) -> None:
        super().__init__(config, rank, model, initial, shared)
        copies = [copy.deepcopy(model) for _ in range(config.workers - 1)]
        self.replicas = tuple(Replica(rank, model) for rank, model in enumerate([model, *copies]))

    def start(self) -> None:
        """Load the initial state into every replica; see Strategy."""
        for replica in self.replicas:
            replica.model.load_state_dict(self._initial)
        self._parameters = [[p for p in replica.model.parameters() if p.requires_grad] for replica in self.replicas]
        self.optimizers = [optimizers.build(self._config.optimizer, own) for own in self._parameters]

    def update(self) -> None:
        """Sum gradients in rank order, hand a copy to each replica's optimizer; see Strategy."""
        self.recorder.enter(COMMUNICATE)
        totals, *others = [optimizers.take_gradients(own) for own in self._parameters]
        for gradients in others:
            for total, gradient in zip(totals, gradients, strict=True):
                total += gradient
        self.recorder.enter(UPDATE)
        for optimizer in self.optimizers:
            optimizer.step([total.clone() for total in totals])
