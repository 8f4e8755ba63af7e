"""Synchronous data parallelism on several hosts: shared memory within each, torch.distributed between them.

The ranks of a host add up their gradients in shared memory, each rank a chunk. Then the ranks of all hosts that have
the same chunk all-reduce it among themselves, and each updates its host's parameters there. So a host sends each sum
once, whatever the number of its ranks, and all of its ranks send at the same time.

The gradients of a larger model are cut into buckets. A bucket is exchanged as soon as backward has computed all of it,
while backward goes on, as in torch's DistributedDataParallel (Li et al. 2020, "PyTorch Distributed").
"""

from __future__ import annotations

import contextlib
import functools
import math
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import Store  # type: ignore[attr-defined]

from dpexp.config.experiment import ExperimentConfig
from dpexp.config.strategies import HybridDpConfig
from dpexp.errors import PeerError, WorkerError, one_line
from dpexp.processes.barrier import BarrierMember
from dpexp.processes.descriptors import Descriptor
from dpexp.processes.shared_memory import SharedTensors
from dpexp.results.phases import COMMUNICATE, COMPUTE
from dpexp.strategies.base import Strategy
from dpexp.strategies.core_sharing import CoreTurn, spin_seconds
from dpexp.strategies.reduce_scatter import ReduceScatter
from dpexp.strategies.rendezvous import Rendezvous, broadcast, gather
from dpexp.strategies.sync_dp import Shared, SyncDataParallel, arena_layout

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
        self._buckets = in_buckets(self._reduction, bucket_bytes(config, config.workers // shared.local_size))
        self._chunks = [bucket.chunk for bucket in self._buckets]
        self._exchanged = 0  # buckets, in this step
        self._exchanges: list[dist.Work] = []  # between hosts, that were begun in this step
        self._missing = self._all_missing()  # of each bucket, gradients that backward has not computed
        self._accumulating = False
        if len(self._buckets) > 1:
            for number, bucket in enumerate(self._buckets):
                for parameter in bucket.parameters:
                    parameter.register_post_accumulate_grad_hook(functools.partial(self._computed, number))

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
    def shares_cores(cls, config: ExperimentConfig) -> bool:
        """No workers take turns here."""
        return Strategy.shares_cores(config)

    @classmethod
    def under_torchrun(cls, rendezvous: Rendezvous, local_rank: int, local_size: int) -> Place:
        """What a rank receives."""
        return Place(rendezvous, local_rank, local_size, None)

    @contextlib.contextmanager
    def accumulating(self) -> Iterator[None]:
        """Without an exchange."""
        self._accumulating = True
        try:
            yield
        finally:
            self._accumulating = False

    def update(self) -> None:
        """Exchange what was not yet; each rank updates its chunks of its host's parameters."""
        while self._exchanged < len(self._buckets):
            self._exchange_next()
        self.recorder.enter(COMMUNICATE)
        for exchange in self._exchanges:
            exchange.wait()
        self._exchanges.clear()
        self._exchanged, self._missing = 0, self._all_missing()
        self._update_chunks([bucket.total for bucket in self._buckets])

    def _computed(self, number: int, parameter: torch.Tensor) -> None:
        """Backward has computed a gradient of a bucket: exchange those that are complete, in the order of all ranks."""
        if self._accumulating:
            return
        self._missing[number] -= 1
        if self._missing[number] < 0:
            raise WorkerError("the model's backward computes a gradient twice in a step; set strategy.bucket_mb=null")
        while self._exchanged < len(self._buckets) and self._missing[self._exchanged] == 0:
            self._exchange_next()
            self.recorder.enter(COMPUTE)

    def _exchange_next(self) -> None:
        """Sum a bucket's gradients within the host, and begin to do so between hosts."""
        bucket = self._buckets[self._exchanged]
        self._exchanged += 1
        self.recorder.enter(COMMUNICATE)
        bucket.publish()
        self._wait()  # all gradients are published
        self.recorder.enter(COMMUNICATE)
        bucket.sum_chunk()
        if self._group is not None and len(bucket.chunk):
            exchange = dist.all_reduce(bucket.total, group=self._group, async_op=True)
            assert exchange is not None  # as this rank belongs to the group
            self._exchanges.append(exchange)

    def _all_missing(self) -> list[int]:
        return [len(bucket.parameters) for bucket in self._buckets]

    def barrier(self) -> None:
        """Return when every rank of every host has called it."""
        dist.barrier()

    def broadcast(self, numbers: list[int]) -> list[int]:
        """Rank 0's numbers."""
        return broadcast(numbers, self.device)

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """All ranks' values."""
        return gather(values, self._config.workers)


def bucket_bytes(config: ExperimentConfig, hosts: int) -> float:
    """Of gradients: a single host exchanges them all at once."""
    assert isinstance(config.strategy, HybridDpConfig)
    return math.inf if config.strategy.bucket_mb is None or hosts == 1 else 1e6 * config.strategy.bucket_mb


def in_buckets(whole: ReduceScatter, bucket_bytes: float) -> list[ReduceScatter]:
    """The parameters in parts, each but the last of at least `bucket_bytes`.

    The last parameters come first, since backward ends with the first.
    """
    buckets, last = [], len(whole.parameters)
    for first in range(last - 1, -1, -1):
        if first == 0 or sum(parameter.nbytes for parameter in whole.parameters[first:last]) >= bucket_bytes:
            buckets.append(whole.part(first, last))
            last = first
    return buckets


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
                    socket.send_fds(connection, [b"."], [part.arena.file.number, *part.barrier.descriptors])
        return parts[0]
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(store.get(key).decode())
        connection.send(str(place.local_rank).encode())
        _, (arena, *counters), _, _ = socket.recv_fds(connection, 1, MOST_DESCRIPTORS)
    member = BarrierMember.of_descriptors(counters, spin_seconds(threads))
    tensors = SharedTensors(Descriptor(arena), arena_layout(config, initial, ranks))
    return Shared(place.local_rank, threads, member, tensors, CoreTurn(place.local_rank), member)
