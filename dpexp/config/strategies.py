"""The available strategies: their settings and capabilities. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from dpexp.config.groups import STRICT
from dpexp.errors import ConfigError


class Kind(NamedTuple):
    """The capabilities of a strategy."""

    one_process_a_worker: bool = True  # False: one process for all workers
    devices: tuple[str, ...] = ("cpu",)
    several_machines: bool = False  # whether it runs under torchrun


KINDS = {
    "sync_dp": Kind(),
    "ddp": Kind(devices=("cpu", "cuda"), several_machines=True),
    "hybrid_dp": Kind(several_machines=True),
    "emulated": Kind(one_process_a_worker=False),
    "sequential": Kind(one_process_a_worker=False, devices=("cpu", "cuda")),
}


@dataclass(frozen=True, config=STRICT)
class Named:
    """A strategy with its settings."""

    name: str

    @property
    def kind(self) -> Kind:
        """Its capabilities."""
        return KINDS[self.name]

    def check_workers(self, workers: int) -> None:
        """Raise ValueError for a number of workers that the settings don't allow."""

    def check_places(self, places: Sequence[tuple[int, ...]]) -> None:
        """Raise ConfigError where torchrun's ranks, of which each has (local_rank, local_world_size), can't be used."""


@dataclass(frozen=True, config=STRICT)
class PlainConfig(Named):
    """A strategy without settings."""

    name: Literal["sync_dp", "emulated", "sequential"]

    def check_workers(self, workers: int) -> None:
        """A sequential training has one worker."""
        if self.name == "sequential" and workers > 1:
            raise ValueError(
                f"workers={workers} with strategy=sequential: it has one process and one worker; "
                f"set workers=1, or choose {strategies_where(lambda kind: kind is not self.kind)}"
            )


@dataclass(frozen=True, config=STRICT)
class DdpConfig(Named):
    """torch's DistributedDataParallel; the flag is torch's, for models that leave parameters unused."""

    name: Literal["ddp"]
    find_unused_parameters: bool
    exchange: Literal["gloo", "shared_memory"] = "gloo"  # results of earlier versions lack it


@dataclass(frozen=True, config=STRICT)
class HybridDpConfig(Named):
    """Shared memory within a host, torch.distributed between hosts: torchrun's, or `hosts` simulated ones."""

    name: Literal["hybrid_dp"]
    hosts: PositiveInt | None
    bucket_mb: PositiveFloat | None = None  # results of earlier versions lack it

    def check_workers(self, workers: int) -> None:
        """Each host needs the same number, except for the sequential training of workers=1."""
        if workers > 1 and workers % (self.hosts or 1):
            raise ValueError(
                f"workers={workers} with strategy.hosts={self.hosts}: each host needs the same number of workers; "
                f"choose a multiple of {self.hosts}"
            )

    def check_places(self, places: Sequence[tuple[int, ...]]) -> None:
        """torchrun's nodes are the hosts, each with the same number of consecutive ranks."""
        if self.hosts is not None:
            raise ConfigError(f"strategy.hosts={self.hosts} under torchrun: its nodes are the hosts; leave it out")
        size = places[0][1]
        for rank, (local_rank, local_size) in enumerate(places):
            if local_size != size or size < 1 or len(places) % size or rank % size != local_rank:
                raise ConfigError(
                    f"strategy=hybrid_dp with rank {rank} as LOCAL_RANK={local_rank} of "
                    f"LOCAL_WORLD_SIZE={local_size}, where rank 0's host has {size} of {len(places)}: each host needs "
                    "the same number of consecutive ranks; use the same --nproc-per-node on each, or strategy=ddp"
                )


StrategyConfig = Annotated[PlainConfig | DdpConfig | HybridDpConfig, Field(discriminator="name")]


def strategies_where(suitable: Callable[[Kind], bool]) -> str:
    """The names of the suitable strategies, for an error message."""
    *others, last = [name for name, kind in KINDS.items() if suitable(kind)]
    return f"strategy={', '.join(others)} or {last}" if others else f"strategy={last}"
