"""What torchrun tells each process that it starts, by environment variables; imports no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from dpexp.config import ExperimentConfig
from dpexp.errors import ConfigError

REQUIRED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class World:
    """This process among all that torchrun started, on however many machines."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    master_address: str
    master_port: int
    serves_store: bool  # nobody else does: rank 0 where the launcher isn't torchrun itself
    attempt: int  # torchrun's restarts of the whole group

    @classmethod
    def from_environment(cls, variables: Mapping[str, str] = os.environ) -> World | None:
        """None where dpexp was started by hand. Raises ConfigError for a broken contract."""
        if "RANK" not in variables or "WORLD_SIZE" not in variables:
            return None
        if missing := [name for name in REQUIRED if name not in variables]:
            raise ConfigError(
                f"RANK and WORLD_SIZE are set, as by torchrun, but not {', '.join(missing)}; set all or none"
            )
        try:
            rank, world_size, local_rank, port = (int(variables[name]) for name in REQUIRED if name != "MASTER_ADDR")
        except ValueError:
            values = " ".join(f"{name}={variables[name]}" for name in REQUIRED)
            raise ConfigError(f"{values}: all but MASTER_ADDR must be whole numbers") from None
        return cls(
            rank=rank,
            world_size=world_size,
            local_rank=local_rank,
            local_world_size=int(variables.get("LOCAL_WORLD_SIZE", world_size)),
            master_address=variables["MASTER_ADDR"],
            master_port=port,
            serves_store=rank == 0 and variables.get("TORCHELASTIC_USE_AGENT_STORE") != "True",
            attempt=int(variables.get("TORCHELASTIC_RESTART_COUNT", "0")),
        )

    def check(self, config: ExperimentConfig) -> None:
        """Raise ConfigError for a job that these processes can't run."""
        if config.strategy.name != "ddp":
            raise ConfigError(
                f"strategy={config.strategy.name} under torchrun: it works within one process or one machine; "
                "choose strategy=ddp, or start dpexp without torchrun"
            )
        if config.measurement.counterfactuals:
            raise ConfigError("measurement.counterfactuals=true under torchrun: it compares processes of one machine")
        if config.workers != self.world_size:
            raise ConfigError(
                f"workers={config.workers}, but torchrun started WORLD_SIZE={self.world_size} processes "
                f"(nnodes x nproc-per-node): set workers={self.world_size}"
            )
