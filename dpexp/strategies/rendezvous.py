"""How the processes of one training find each other for torch.distributed, and what they say of one that is lost."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from dpexp.errors import PeerError, one_line

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Rendezvous:
    """Keys below `prefix` in a store at `host`:`port`."""

    host: str
    port: int
    prefix: str
    server: Any = None  # the store, in the parent, which keeps it until the training is over

    def __reduce__(self) -> tuple[Any, ...]:
        return Rendezvous, (self.host, self.port, self.prefix)

    @classmethod
    def here(cls) -> Rendezvous:
        """A new store, on a free port of this machine."""
        server = TCPStore(LOOPBACK, 0, is_master=True, wait_for_workers=False)
        return cls(LOOPBACK, server.port, "group", server)

    def join(self, backend: str, rank: int, world_size: int) -> PrefixStore:
        """Make this process a member of torch's default process group; returns the store."""
        if self.host == LOOPBACK:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
        store = PrefixStore(self.prefix, TCPStore(self.host, self.port, is_master=False))
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)
        return store


def broadcast(numbers: list[int], device: torch.device) -> list[int]:
    """Rank 0's numbers. All ranks call it together."""
    tensor = torch.tensor(numbers, device=device)
    dist.broadcast(tensor, 0)
    return [int(number) for number in tensor]


def gather(values: torch.Tensor, world_size: int) -> torch.Tensor:
    """All ranks' values (w, n), in rank order. All ranks call it together."""
    gathered = [torch.empty_like(values) for _ in range(world_size)]
    dist.all_gather(gathered, values)
    return torch.stack(gathered)


def explained(error: RuntimeError) -> Exception:
    """gloo and the store raise a RuntimeError when a peer is gone."""
    if isinstance(error, dist.DistError) or "gloo" in str(error).lower():
        return PeerError(f"lost another rank ({one_line(error)})")
    return error
