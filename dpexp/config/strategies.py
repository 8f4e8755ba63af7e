"""The strategies to choose from: the settings of each, and what each can do. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from dpexp.config.groups import STRICT


@dataclass(frozen=True, config=STRICT)
class Capabilities:
    """What holds for a strategy unless its own class says otherwise."""

    one_process_a_worker: ClassVar[bool] = True  # False: one process for all workers
    most_workers: ClassVar[int | None] = None
    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    several_machines: ClassVar[bool] = False  # whether it runs under torchrun


@dataclass(frozen=True, config=STRICT)
class SequentialConfig(Capabilities):
    """One process, one worker."""

    name: Literal["sequential"]

    one_process_a_worker: ClassVar[bool] = False
    most_workers: ClassVar[int | None] = 1
    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")


@dataclass(frozen=True, config=STRICT)
class SyncDpConfig(Capabilities):
    """Gradients are combined through shared memory."""

    name: Literal["sync_dp"]


@dataclass(frozen=True, config=STRICT)
class EmulatedConfig(Capabilities):
    """One process plays all workers in turn."""

    name: Literal["emulated"]

    one_process_a_worker: ClassVar[bool] = False


@dataclass(frozen=True, config=STRICT)
class DdpConfig(Capabilities):
    """torch's DistributedDataParallel; the flag is torch's, for models that leave parameters unused."""

    name: Literal["ddp"]
    find_unused_parameters: bool

    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")
    several_machines: ClassVar[bool] = True


StrategyConfig = Annotated[SequentialConfig | SyncDpConfig | EmulatedConfig | DdpConfig, Field(discriminator="name")]

KINDS: dict[str, type[Capabilities]] = {
    "sync_dp": SyncDpConfig,
    "ddp": DdpConfig,
    "emulated": EmulatedConfig,
    "sequential": SequentialConfig,
}


def strategies_where(suitable: Callable[[type[Capabilities]], bool]) -> str:
    """The names of the suitable strategies, for an error message."""
    *others, last = [name for name, kind in KINDS.items() if suitable(kind)]
    return f"strategy={', '.join(others)} or {last}" if others else f"strategy={last}"
