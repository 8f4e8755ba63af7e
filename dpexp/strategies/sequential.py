"""One process, one worker: the baseline, and every strategy with a single worker."""

from __future__ import annotations

from dpexp.models import optimizers
from dpexp.results.phases import UPDATE
from dpexp.strategies.base import Strategy


class Sequential(Strategy):
    """Plain training: the gradient of the one replica is the gradient."""

    def start(self) -> None:
        """Load the initial state into the one replica."""
        model = self.replicas[0].model
        model.load_state_dict(self._initial)
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizers = [optimizers.build(self._config.optimizer, self._parameters)]

    def update(self) -> None:
        """One optimizer update."""
        self.recorder.enter(UPDATE)
        self.optimizers[0].step(optimizers.take_gradients(self._parameters))
