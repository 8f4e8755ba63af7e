"""The rendezvous of the processes of one training for torch.distributed, and errors when one is lost."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from dpexp.errors import PeerError, WorkerError, one_line
from dpexp.exchange.peers import LostRankError

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Rendezvous:
    """The address of the store, by which the ranks find each other."""

    host: str
    port: int
    prefix: str  # prefix of all keys
    server: Any = None  # the store, in the parent, which keeps it until the training is over

    def __reduce__(self) -> tuple[Any, ...]:
        return Rendezvous, (self.host, self.port, self.prefix)

    @classmethod
    def on_this_host(cls, ranks: int) -> list[Rendezvous]:
        """Return the rendezvous of each rank, at a new store on a free port of this machine."""
        server = TCPStore(LOOPBACK, 0, is_master=True, wait_for_workers=False)
        return [cls(LOOPBACK, server.port, "group", server)] * ranks

    def join(self, rank: int, world_size: int) -> PrefixStore:
        """Join torch's default process group, over gloo; return the store."""
        if self.host == LOOPBACK:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        store = PrefixStore(self.prefix, TCPStore(self.host, self.port, is_master=False))
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
        return store


@contextlib.contextmanager
def translate_errors() -> Iterator[None]:
    """Raise torch's errors as PeerError if another rank is gone, or as WorkerError that says what to set."""
    try:
        yield
    except RuntimeError as error:
        if "Expected to have finished reduction" in str(error):  # DistributedDataParallel's message
            raise WorkerError(
                "the model left a parameter unused in a step; set strategy.find_unused_parameters=true"
            ) from error
        if isinstance(error, (dist.DistError, LostRankError)) or "gloo" in str(error).lower():
            raise PeerError(f"lost another rank ({one_line(error)})") from error
        raise
