"""Synchronous data parallelism on several hosts: shared memory within each, torch.distributed between them.

The ranks of a host add up their gradients in shared memory, each rank a chunk. Then the ranks of all hosts that have
the same chunk all-reduce it among themselves, and each updates its host's parameters there. So a host sends each sum
once, whatever the number of its ranks, and all of its ranks send at the same time.
"""

from __future__ import annotations

import secrets
import socket
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import Store  # type: ignore[attr-defined]

from dpexp.config.experiment import ExperimentConfig
from dpexp.config.strategies import HybridDpConfig
from dpexp.errors import PeerError, one_line
from dpexp.phases import COMMUNICATE
from dpexp.processes.barrier import BarrierMember
from dpexp.processes.shared_memory import SharedTensors
from dpexp.strategies.relay import Relay
from dpexp.strategies.rendezvous import Rendezvous, broadcast, gather
from dpexp.strategies.sync_dp import Shared, SyncDataParallel, arena_layout, spin_seconds

MOST_DESCRIPTORS = 64  # of a rank's part in the shared memory and the barrier


@dataclass(frozen=True)
class Place:
    """What one rank receives. `shared` is None under torchrun: there, the ranks of a host have to meet."""

    rendezvous: Rendezvous
    local_rank: int
    local_size: int
    shared: Shared | None

    def close(self) -> None:
        """Close the parent's descriptors."""
        if self.shared is not None:
            self.shared.close()


class HybridDataParallel(SyncDataParallel):
    """One process a worker. Waiting for other hosts can't be told from exchanging with them."""

    unmeasured_phases = ("wait",)
    wait_phase = COMMUNICATE
    takes_turns = False

    def __init__(
        self, config: ExperimentConfig, rank: int, model: nn.Module, initial: SharedTensors, shared: Place
    ) -> None:
        store = shared.rendezvous.join("gloo", rank, config.workers)
        super().__init__(config, rank, model, initial, shared.shared or _met(shared, rank, store, config, initial))
        self._group: dist.ProcessGroup | None = None  # of the ranks that have the same chunk, one a host
        if shared.local_size < config.workers:
            groups = [  # each rank takes part in making each
                dist.new_group(range(local_rank, config.workers, shared.local_size))
                for local_rank in range(shared.local_size)
            ]
            group = groups[shared.local_rank]
            assert isinstance(group, dist.ProcessGroup)  # and no mark of ranks that don't belong to it
            self._group = group
        used = sum(place.numel() for place in self.places.values()) - shared.local_rank * len(self._chunk)
        self._used = min(max(used, 0), len(self._chunk))  # elements of the chunk; the rest is padding

    @classmethod
    def share(cls, config: ExperimentConfig, initial: SharedTensors) -> list[Place]:  # type: ignore[override]
        """The rendezvous of all, and the shared memory and the barrier of each host that is acted."""
        assert isinstance(config.strategy, HybridDpConfig)
        hosts = config.strategy.hosts or 1
        size, rendezvous = config.workers // hosts, Rendezvous.here()
        return [
            Place(rendezvous, shared.local_rank, size, shared)
            for _ in range(hosts)
            for shared in Shared.create(config, initial, size, config.busy_threads, size)
        ]

    @classmethod
    def under_torchrun(cls, rendezvous: Rendezvous, local_rank: int, local_size: int) -> Place:
        """What a rank receives."""
        return Place(rendezvous, local_rank, local_size, None)

    def _sum_over_hosts(self, total: torch.Tensor) -> None:
        if self._group is not None and self._used:
            dist.all_reduce(total[: self._used], group=self._group)

    def barrier(self) -> None:
        """Return when every rank of every host has called it."""
        dist.barrier()

    def broadcast(self, numbers: list[int]) -> list[int]:
        """Rank 0's numbers."""
        return broadcast(numbers, self.device)

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """All ranks' values."""
        return gather(values, self._config.workers)


def _met(place: Place, rank: int, store: Store, config: ExperimentConfig, initial: SharedTensors) -> Shared:
    """This rank's part in what the ranks of its host share. Raises PeerError when another one of them is lost."""
    try:
        return _meet(place, f"host/{rank - place.local_rank}", store, config, initial)
    except (OSError, ValueError) as error:
        raise PeerError(
            f"the ranks of a host can't share memory: {one_line(error)}; they need one network namespace of Linux"
        ) from error


def _meet(place: Place, key: str, store: Store, config: ExperimentConfig, initial: SharedTensors) -> Shared:
    """The first rank makes all parts; the others receive theirs.

    Descriptors pass through a socket in Linux's abstract namespace, which leaves no file behind.
    """
    ranks = place.local_size
    threads = ranks * config.threads_per_worker
    if place.local_rank == 0:
        parts = Shared.create(config, initial, ranks, threads, ranks)
        with socket.socket(socket.AF_UNIX) as listener:
            name = f"\0dpexp/{secrets.token_hex(16)}"  # which only those learn who can read the store
            listener.bind(name)
            listener.listen(ranks)
            store.set(key, name)
            for _ in range(ranks - 1):
                connection, _ = listener.accept()
                with connection:
                    part = parts[int(connection.recv(16))]
                    socket.send_fds(connection, [b"."], [part.arena.descriptor, *part.barrier.descriptors])
        return parts[0]
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(store.get(key).decode())
        connection.send(str(place.local_rank).encode())
        _, (arena, *counters), _, _ = socket.recv_fds(connection, 1, MOST_DESCRIPTORS)
    member = BarrierMember.of_descriptors(counters, spin_seconds(threads))
    tensors = SharedTensors(arena, arena_layout(config, initial, ranks))
    return Shared(place.local_rank, threads, member, tensors, Relay(place.local_rank), member)
