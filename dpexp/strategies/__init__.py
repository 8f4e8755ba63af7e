"""How workers combine their gradients; `strategy_class` is the registry."""

from dpexp.config import ExperimentConfig
from dpexp.strategies.base import Replica, Strategy
from dpexp.strategies.ddp import Ddp
from dpexp.strategies.emulated import Emulated
from dpexp.strategies.sequential import Sequential
from dpexp.strategies.sync_dp import SyncDataParallel

__all__ = ["Ddp", "Emulated", "Replica", "Sequential", "Strategy", "SyncDataParallel", "strategy_class"]


def strategy_class(config: ExperimentConfig) -> type[Strategy]:
    """The class that plays the configured strategy. One worker of any kind has nothing to combine."""
    if config.workers == 1:
        return Sequential
    classes: dict[str, type[Strategy]] = {kind.name: kind for kind in (Ddp, Emulated, SyncDataParallel)}
    return classes[config.strategy.name]
