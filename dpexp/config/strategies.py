"""The available strategies: their settings and capabilities. Needs no torch."""

from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple

from pydantic import Field
from pydantic.dataclasses import dataclass

from dpexp.config.groups import STRICT


class Kind(NamedTuple):
    """The capabilities of a strategy."""

    one_process_a_worker: bool = True  # False: one process for all workers
    several_machines: bool = False  # whether it runs under torchrun


KINDS = {
    "sync_dp": Kind(),
    "ddp": Kind(several_machines=True),
    "emulated": Kind(one_process_a_worker=False),
    "sequential": Kind(one_process_a_worker=False),
}


@dataclass(frozen=True, config=STRICT)
class Named:
    """A strategy with its settings."""

    name: str

    @property
    def kind(self) -> Kind:
        """The capabilities of the strategy."""
        return KINDS[self.name]


@dataclass(frozen=True, config=STRICT)
class PlainConfig(Named):
    """A strategy without settings."""

    name: Literal["sync_dp", "emulated", "sequential"]


@dataclass(frozen=True, config=STRICT)
class DdpConfig(Named):
    """torch's DistributedDataParallel. `find_unused_parameters` is for models that leave parameters unused."""

    name: Literal["ddp"]
    find_unused_parameters: bool
    exchange: Literal["gloo", "shared_memory"]


StrategyConfig = Annotated[PlainConfig | DdpConfig, Field(discriminator="name")]


def strategies_where(suitable: Callable[[Kind], bool]) -> str:
    """Return the names of the suitable strategies, for an error message."""
    *others, last = [name for name, kind in KINDS.items() if suitable(kind)]
    return f"strategy={', '.join(others)} or {last}" if others else f"strategy={last}"
