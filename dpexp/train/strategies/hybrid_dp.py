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
from typing import Any

import torch
import torch.distributed as dist

from dpexp.config.experiment import ExperimentConfig
from dpexp.config.strategies import HybridDpConfig
from dpexp.errors import PeerError, WorkerError, one_line
from dpexp.processes.barrier import BarrierMember, Counter, spin_seconds
from dpexp.processes.descriptors import Descriptor
from dpexp.processes.shared_memory import SharedTensors
from dpexp.results.phases import COMMUNICATE, COMPUTE
from dpexp.train.strategies.reduce_scatter import ReduceScatter
from dpexp.train.strategies.rendezvous import Distributed, Rendezvous
from dpexp.train.strategies.sync_dp import Shared, SyncDataParallel, arena_layout

MOST_DESCRIPTORS = 64  # of a rank's part in the shared memory and the barrier


class HybridDataParallel(Distributed, SyncDataParallel):
    """One process a worker. Waiting for other hosts can't be separated from exchanging with them."""

    wait_phase = COMMUNICATE

    def _connect(self, shared: Rendezvous) -> None:  # type: ignore[override]
        config = self._config
        assert isinstance(config.strategy, HybridDpConfig)
        super()._connect(self._meet(shared, config.strategy.hosts is not None))
        self._group: Any = None  # of the ranks that have the same chunk, one a host
        bucket_mb = None  # a single host exchanges all gradients at once
        if shared.local_size < config.workers:
            groups = [list(range(first, config.workers, shared.local_size)) for first in range(shared.local_size)]
            self._group, _ = dist.new_subgroups_by_enumeration(groups)
            bucket_mb = config.strategy.bucket_mb
        self._buckets = in_buckets(self._reduction, math.inf if bucket_mb is None else 1e6 * bucket_mb)
        self._updated = [[bucket.chunk for bucket in self._buckets]]
        self._accumulating = False
        self._forget_exchanges()
        if len(self._buckets) > 1:
            for number, bucket in enumerate(self._buckets):
                for parameter in bucket.parameters:
                    parameter.register_post_accumulate_grad_hook(functools.partial(self._computed, number))

    def _meet(self, place: Rendezvous, simulates_hosts: bool) -> Shared:
        """This rank's part in what the ranks of its host share. Raises PeerError when another one of them is lost.

        The first rank makes all parts; the others receive theirs. Descriptors pass through a socket in Linux's abstract
        namespace, which leaves no file behind.
        """
        config, initial, rank, ranks = self._config, self._initial, self.replicas[0].rank, place.local_size
        threads = config.busy_threads if simulates_hosts else ranks * config.threads_per_worker  # of this machine
        store, key = place.join("gloo", rank, config.workers), f"host/{rank - place.local_rank}"
        try:
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
                            files = [part.arena.file, *part.barrier.counters]
                            socket.send_fds(connection, [b"."], [file.number for file in files])
                return parts[0]
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(store.get(key).decode())
                connection.send(str(place.local_rank).encode())
                _, (arena, *counters), _, _ = socket.recv_fds(connection, 1, MOST_DESCRIPTORS)
            member = BarrierMember([Counter(number) for number in counters], spin_seconds(threads))
            tensors = SharedTensors(Descriptor(arena), arena_layout(config, initial, ranks))
            return Shared(place.local_rank, threads, tensors, member, member)
        except (OSError, ValueError) as error:
            raise PeerError(
                f"the ranks of a host can't share memory: {one_line(error)}; they need one network namespace of Linux"
            ) from error

    @classmethod
    def share(cls, config: ExperimentConfig, initial: SharedTensors) -> list[Rendezvous]:
        """The rendezvous of all ranks. The ranks of a host, real or simulated, meet to share memory."""
        assert isinstance(config.strategy, HybridDpConfig)
        return Rendezvous.here(config.workers, config.strategy.hosts or 1)

    @contextlib.contextmanager
    def accumulating(self) -> Iterator[None]:
        """Without an exchange."""
        self._accumulating = True
        yield
        self._accumulating = False

    def update(self) -> None:
        """Exchange what was not yet; each rank updates its chunks of its host's parameters."""
        while self._exchanged < len(self._buckets):
            self._exchange_next()
        self.recorder.enter(COMMUNICATE)
        for exchange in self._exchanges:
            exchange.wait()
        self._forget_exchanges()
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
            self._exchanges.append(dist.all_reduce(bucket.total, group=self._group, async_op=True))

    def _forget_exchanges(self) -> None:
        self._exchanged = 0  # buckets, in this step
        self._exchanges: list[Any] = []  # between hosts, that were begun in this step
        self._missing = [len(bucket.parameters) for bucket in self._buckets]  # gradients that backward has not computed


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
