"""The strategies to choose from: the settings of each, and what each can do. Needs no torch."""

from __future__ import annotations

import dataclasses
import shlex
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt, model_validator
from pydantic.dataclasses import dataclass

from dpexp.config.groups import STRICT, PositiveFloat
from dpexp.errors import ConfigError


@dataclass(frozen=True, config=STRICT)
class Capabilities:
    """What holds for a strategy unless its own class says otherwise."""

    one_process_a_worker: ClassVar[bool] = True  # False: one process for all workers
    most_workers: ClassVar[int | None] = None
    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    several_machines: ClassVar[bool] = False  # whether it runs under torchrun
    brings: ClassVar[tuple[str, ...]] = ()  # config groups that say `script`, as the user's script has its own
    imports: ClassVar[tuple[str, ...]] = ()  # modules that are slow to import, beside torch

    def sequential(self) -> StrategyConfig:
        """The strategy of the baseline."""
        return SequentialConfig(name="sequential")

    def check_workers(self, workers: int) -> None:
        """Raise ValueError for a number of workers that the settings don't allow."""

    def check_places(self, places: Sequence[tuple[int, ...]]) -> None:
        """Raise ConfigError where torchrun's ranks, of which each has (local_rank, local_world_size), can't be used."""


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
    imports: ClassVar[tuple[str, ...]] = ("torch._dynamo",)


@dataclass(frozen=True, config=STRICT)
class HybridDpConfig(Capabilities):
    """Shared memory within a host, torch.distributed between hosts: torchrun's, or `hosts` that this machine acts."""

    name: Literal["hybrid_dp"]
    hosts: PositiveInt | None
    bucket_mb: PositiveFloat | None = None  # results of earlier versions lack it

    several_machines: ClassVar[bool] = True

    def check_workers(self, workers: int) -> None:
        """Each host needs as many, except for the sequential training of workers=1."""
        if workers > 1 and workers % (self.hosts or 1):
            raise ValueError(
                f"workers={workers} with strategy.hosts={self.hosts}: each host needs the same number of workers; "
                f"choose a multiple of {self.hosts}"
            )

    def check_places(self, places: Sequence[tuple[int, ...]]) -> None:
        """torchrun's nodes are the hosts, each with as many ranks, numbered one host after the other."""
        if self.hosts is not None:
            raise ConfigError(f"strategy.hosts={self.hosts} under torchrun: its nodes are the hosts; leave it out")
        size = places[0][1]
        for rank, (local_rank, local_size) in enumerate(places):
            if local_size != size or size < 1 or len(places) % size or rank % size != local_rank:
                raise ConfigError(
                    f"strategy=hybrid_dp with rank {rank} as LOCAL_RANK={local_rank} of "
                    f"LOCAL_WORLD_SIZE={local_size}, where rank 0's host has {size} of {len(places)}: each host needs "
                    "as many ranks, numbered in a row; use the same --nproc-per-node on each, or strategy=ddp"
                )


PLACEHOLDERS = ("workers", "threads_per_worker", "local_batch_size", "global_batch_size", "seed")


@dataclass(frozen=True, config=STRICT)
class ScriptConfig(Capabilities):
    """A command of the user's, which trains by itself; `baseline_command` (None: the same) runs with one worker."""

    name: Literal["script"]
    command: str
    baseline_command: str | None

    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")
    brings: ClassVar[tuple[str, ...]] = ("model", "data", "optimizer")

    def sequential(self) -> ScriptConfig:
        """The same, for the baseline's command."""
        return dataclasses.replace(self, command=self.baseline_command or self.command, baseline_command=None)

    def words(self, values: Mapping[str, object]) -> list[str]:
        """The command with its placeholders filled from these values."""
        return shlex.split(self.command.format(**{name: values[name] for name in PLACEHOLDERS}))

    @model_validator(mode="after")
    def _check_commands(self) -> ScriptConfig:
        for name, command in (("command", self.command), ("baseline_command", self.baseline_command)):
            if command is None:
                continue
            try:
                words = shlex.split(command)
                fields = {field for _, field, _, _ in string.Formatter().parse(command) if field is not None}
            except ValueError as error:
                raise ValueError(f"strategy.{name}={command}: {error}; a brace is written {{{{ or }}}}") from error
            if not words:
                raise ValueError(f"strategy.{name} is empty: write the command that starts the training")
            if unknown := sorted(fields - set(PLACEHOLDERS)):
                choices = ", ".join(f"{{{choice}}}" for choice in PLACEHOLDERS)
                raise ValueError(f"strategy.{name} has a placeholder {{{unknown[0]}}}: choose from {choices}")
        return self


StrategyConfig = Annotated[
    SequentialConfig | SyncDpConfig | EmulatedConfig | DdpConfig | HybridDpConfig | ScriptConfig,
    Field(discriminator="name"),
]

KINDS: dict[str, type[Capabilities]] = {
    "sync_dp": SyncDpConfig,
    "ddp": DdpConfig,
    "hybrid_dp": HybridDpConfig,
    "emulated": EmulatedConfig,
    "sequential": SequentialConfig,
    "script": ScriptConfig,
}


def strategies_where(suitable: Callable[[type[Capabilities]], bool]) -> str:
    """The names of the suitable strategies that train any model, for an error message."""
    *others, last = [name for name, kind in KINDS.items() if suitable(kind) and not kind.brings]
    return f"strategy={', '.join(others)} or {last}" if others else f"strategy={last}"
