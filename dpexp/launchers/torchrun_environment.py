"""What torchrun tells each process that it starts, in environment variables. Needs no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from dpexp.config.experiment import ExperimentConfig
from dpexp.config.job import JobConfig
from dpexp.config.strategies import strategies_where
from dpexp.errors import ConfigError, counted

REQUIRED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT")


@dataclass(frozen=True)
class TorchrunEnvironment:
    """This process among all that torchrun started, on however many machines."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    master_address: str
    master_port: int
    serves_store: bool  # rank 0, where the launcher is not torchrun, which serves a store itself
    attempt: int  # how often torchrun has restarted all processes
    started_by_torchrun: bool  # and not by another program that sets these variables

    @classmethod
    def read(cls, variables: Mapping[str, str] = os.environ) -> TorchrunEnvironment | None:
        """None where dpexp was started by hand. Raises ConfigError for a broken contract."""
        if "RANK" not in variables or "WORLD_SIZE" not in variables:
            return None
        if missing := [name for name in REQUIRED if name not in variables]:
            raise ConfigError(
                f"RANK and WORLD_SIZE are set, as by torchrun, but not {', '.join(missing)}; set all or none"
            )
        defaults = {"LOCAL_WORLD_SIZE": variables["WORLD_SIZE"], "TORCHELASTIC_RESTART_COUNT": "0"}
        given = {name: variables.get(name, defaults.get(name, "")) for name in NUMBERS}
        for name, value in given.items():
            if not value.isdecimal():
                raise ConfigError(f"{name}={value}: it must be a whole number, as torchrun sets it")
        numbers = {name: int(value) for name, value in given.items()}
        rank = numbers["RANK"]
        if rank >= numbers["WORLD_SIZE"]:
            raise ConfigError(f"RANK={rank} with WORLD_SIZE={numbers['WORLD_SIZE']}: ranks are 0 to WORLD_SIZE - 1")
        return cls(
            rank=rank,
            world_size=numbers["WORLD_SIZE"],
            local_rank=numbers["LOCAL_RANK"],
            local_world_size=numbers["LOCAL_WORLD_SIZE"],
            master_address=variables["MASTER_ADDR"],
            master_port=numbers["MASTER_PORT"],
            serves_store=rank == 0 and variables.get("TORCHELASTIC_USE_AGENT_STORE") != "True",
            attempt=numbers["TORCHELASTIC_RESTART_COUNT"],
            started_by_torchrun="TORCHELASTIC_RUN_ID" in variables,
        )

    def check_world_size(self, rank: int, world_size: int) -> None:
        """Raise ConfigError where another rank was started with another number of ranks."""
        if world_size != self.world_size:
            ranks = sorted([(rank, world_size), (self.rank, self.world_size)], reverse=True)
            started = ", ".join(f"rank {number} with WORLD_SIZE={size}" for number, size in ranks)
            raise ConfigError(
                f"{started}: start all with the same number (torchrun: the same --nnodes and --nproc-per-node on each "
                "host)"
            )

    def check(self, config: JobConfig) -> None:
        """Raise ConfigError for a job that these processes can't run."""
        if not isinstance(config, ExperimentConfig):
            raise ConfigError("a script under torchrun: start dpexp alone, and torchrun by the script's command")
        if not config.strategy.several_machines:
            raise ConfigError(
                f"strategy={config.strategy.name} under torchrun: it works within one process or one machine; "
                f"choose {strategies_where(lambda kind: kind.several_machines)}, or start dpexp without torchrun"
            )
        if config.measurement.independent_copies:
            raise ConfigError("measurement.independent_copies=true under torchrun: it runs on one machine only")
        if config.workers != self.world_size:
            raise ConfigError(
                f"workers={config.workers}, but torchrun started {counted(self.world_size, 'process')} (WORLD_SIZE, "
                f"--nnodes x --nproc-per-node on the first host): set workers={self.world_size}, or start "
                f"{config.workers}"
            )
