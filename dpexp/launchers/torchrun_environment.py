"""What torchrun tells each process that it starts, in environment variables. Needs no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from dpexp.config.built_in import BuiltInConfig
from dpexp.config.job import JobConfig
from dpexp.errors import ConfigError, pluralize

REQUIRED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class TorchrunEnvironment:
    """The place of this process among all that torchrun started."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    master_address: str
    master_port: int
    serves_store: bool  # true on rank 0, unless torchrun serves a store
    prefix: str  # prefix of keys in the store; a new one after each restart by torchrun
    started_by_torchrun: bool  # and not by another program that sets these variables

    @classmethod
    def read(cls, variables: Mapping[str, str] = os.environ) -> TorchrunEnvironment | None:
        """Read the environment variables; None if dpexp was not started by torchrun. Raises ConfigError."""
        if "RANK" not in variables or "WORLD_SIZE" not in variables:
            return None
        if missing := [name for name in REQUIRED if name not in variables]:
            raise ConfigError(
                f"RANK and WORLD_SIZE are set, as by torchrun, but not {', '.join(missing)}; set all or none"
            )
        try:
            return cls._parse(variables)
        except ValueError as error:
            raise ConfigError(f"{', '.join(REQUIRED)} must be as torchrun sets them: {error}") from error

    @classmethod
    def _parse(cls, variables: Mapping[str, str]) -> TorchrunEnvironment:
        return cls(
            rank=int(variables["RANK"]),
            world_size=int(variables["WORLD_SIZE"]),
            local_rank=int(variables["LOCAL_RANK"]),
            local_world_size=int(variables.get("LOCAL_WORLD_SIZE", variables["WORLD_SIZE"])),
            master_address=variables["MASTER_ADDR"],
            master_port=int(variables["MASTER_PORT"]),
            serves_store=variables["RANK"] == "0" and variables.get("TORCHELASTIC_USE_AGENT_STORE") != "True",
            prefix=f"dpexp/{variables.get('TORCHELASTIC_RESTART_COUNT', '0')}",
            started_by_torchrun="TORCHELASTIC_RUN_ID" in variables,
        )

    def check(self, config: JobConfig) -> None:
        """Raise ConfigError for a job that these processes can't run."""
        if not isinstance(config, BuiltInConfig):
            if self.local_world_size > 1:
                raise ConfigError(
                    f"LOCAL_WORLD_SIZE={self.local_world_size}: a script's command starts the workers of each host; "
                    "start one dpexp on each host (torchrun: --nproc-per-node=1)"
                )
            if config.workers > 1 and config.workers % self.world_size:
                raise ConfigError(
                    f"workers={config.workers} on {self.world_size} hosts: choose a multiple of {self.world_size}, "
                    "or 1 for the first host alone"
                )
            return
        if config.strategy.name != "ddp":
            raise ConfigError(
                f"strategy={config.strategy.name} under torchrun: it runs on one machine only; "
                "choose strategy=ddp, or start dpexp without torchrun"
            )
        if config.workers != self.world_size:
            raise ConfigError(
                f"workers={config.workers}, but torchrun started {pluralize(self.world_size, 'process')} (WORLD_SIZE, "
                f"--nnodes x --nproc-per-node on the first host): set workers={self.world_size}, or start "
                f"{config.workers}"
            )
