"""One process, one worker: the baseline, and what one worker of data parallelism amounts to."""

from __future__ import annotations

from dpexp import optimizers
from dpexp.strategies.base import Strategy


class Sequential(Strategy):
    """Plain training: the gradient of the one replica is the gradient."""

    name = "sequential"

    def start(self) -> None:
        """Load the initial state; see Strategy."""
        model = self.replicas[0].model
        model.load_state_dict(self._initial)
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._optimizer = optimizers.build(self._config.optimizer, self._parameters)

    def update(self) -> None:
        """One optimizer update; see Strategy."""
        self._optimizer.step(optimizers.take_gradients(self._parameters))
