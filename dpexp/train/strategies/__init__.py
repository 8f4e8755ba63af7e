"""How workers combine their gradients; `strategy_class` is the registry."""

from dpexp.config.built_in import BuiltInConfig
from dpexp.train.strategies.base import Emulated, Replica, Strategy
from dpexp.train.strategies.ddp import Ddp
from dpexp.train.strategies.sync_dp import SyncDataParallel

__all__ = ["Ddp", "Emulated", "Replica", "Strategy", "SyncDataParallel", "strategy_class"]

CLASSES: dict[str, type[Strategy]] = {"sync_dp": SyncDataParallel, "ddp": Ddp, "emulated": Emulated}


def strategy_class(config: BuiltInConfig) -> type[Strategy]:
    """Return the class of the configured strategy. A single worker has nothing to combine, whatever the strategy."""
    return Strategy if config.workers == 1 else CLASSES[config.strategy.name]
