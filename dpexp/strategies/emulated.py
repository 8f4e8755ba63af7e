"""One process plays all workers in turn, with the mathematics of data parallelism.

Its parameters are what synchronous data parallelism must give; its time is the cost without parallelism.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from dpexp.config.experiment import ExperimentConfig
from dpexp.models import optimizers
from dpexp.processes.shared_memory import SharedTensors
from dpexp.results.phases import COMMUNICATE, UPDATE
from dpexp.strategies.base import Replica, Strategy


class Emulated(Strategy):
    """Every worker has a replica and an optimizer, all in this process."""

    def __init__(
        self, config: ExperimentConfig, rank: int, model: nn.Module, initial: SharedTensors, shared: Any
    ) -> None:
        super().__init__(config, rank, model, initial, shared)
        copies = [copy.deepcopy(model) for _ in range(config.workers - 1)]
        self.replicas = tuple(Replica(rank, model) for rank, model in enumerate([model, *copies]))

    def start(self) -> None:
        """Load the initial state into every replica."""
        for replica in self.replicas:
            replica.model.load_state_dict(self._initial)
        self._parameters = [[p for p in replica.model.parameters() if p.requires_grad] for replica in self.replicas]
        self.optimizers = [optimizers.build(self._config.optimizer, parameters) for parameters in self._parameters]

    def update(self) -> None:
        """Sum the gradients in rank order; each replica's optimizer gets a copy."""
        self.recorder.enter(COMMUNICATE)
        totals, *others = [optimizers.take_gradients(parameters) for parameters in self._parameters]
        for gradients in others:
            for total, gradient in zip(totals, gradients, strict=True):
                total += gradient
        self.recorder.enter(UPDATE)
        for optimizer in self.optimizers:
            optimizer.step([total.clone() for total in totals])
