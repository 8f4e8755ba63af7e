"""Sum the gradients of torch's DistributedDataParallel in shared memory; gloo sends them through sockets.

It is a communication hook, torch's public interface, which makes a reduce-scatter and an all-gather of each bucket; in
between, ranks on several hosts all-reduce the chunks that they have summed (see docs/exchange.md).
"""

import datetime
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from dpexp.exchange.peers import LostRankError, Peers
from dpexp.processes.shared_memory import ALIGNMENT_BYTES, chunk_bounds

TIMEOUT_SECONDS = 1800.0  # torch's own
WARMUP_STEPS = 3  # in which DistributedDataParallel rebuilds its buckets: the process group exchanges


def use_shared_memory(
    model: DistributedDataParallel, *, timeout_seconds: float = TIMEOUT_SECONDS
) -> "SharedMemoryGroup":
    """Let a model exchange gradients in shared memory; all ranks of its process group call it before the first step.

    The first WARMUP_STEPS steps use the process group; all steps do if each host has a single rank. The first sums in
    memory are compared with the process group's: if they differ by more than rounding, a RuntimeError says so. While
    memory is used, a LostRankError (a RuntimeError) names a rank that has ended, or that has not come for
    `timeout_seconds`. Each host needs the memory of (ranks + 1) gradients; a RuntimeError is raised if it is short.
    Raises ValueError if hosts have different numbers of ranks, or gradients are not in the memory of the host.
    """
    if any(parameter.device.type != "cpu" for parameter in model.parameters()):
        raise ValueError("the parameters are on a GPU: shared memory works only for gradients on CPUs")
    group = SharedMemoryGroup(model.process_group, timeout_seconds=timeout_seconds)
    model.register_comm_hook(group, _exchange)
    return group


def _exchange(group: "SharedMemoryGroup", bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:  # type: ignore[name-defined]
    return group.exchange(bucket)  # looked up now: traced turns replace it


@dataclass(frozen=True)
class BucketBuffers:
    """The shared memory for one bucket."""

    published: list[tuple[slice, torch.Tensor]]  # the others' chunks: where in the bucket, and in this rank's row
    chunk: slice  # the part of the bucket that this rank sums
    peer_chunks: list[torch.Tensor]  # the same chunk of the other rows
    chunk_sum: torch.Tensor  # their sum
    sums: torch.Tensor  # the sums of all chunks


class PendingExchange(NamedTuple):
    """The exchange of one bucket, in one step."""

    sums: torch.Tensor
    done: Any  # the future of the sums
    inter_host_work: Any  # the all-reduce between hosts, if there is one


class SharedMemoryGroup:
    """The ranks of a process group that exchange gradients."""

    def __init__(self, group: Any, average: bool = True, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        """Meet all ranks, to compute means or sums. Raises ValueError if hosts have different numbers of ranks."""
        self.process_group: Any = dist.group.WORLD if group is None else group
        self.average, self.uses_shared_memory = average, False
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self._step = 0
        self._buffers: dict[int, BucketBuffers] = {}  # by the bucket's number
        self._pending: list[PendingExchange] = []  # in this step
        self._expected: list[tuple[torch.Tensor, torch.Tensor, float]] = []  # the first sums, the group's, the rounding
        self.peers = Peers(self.process_group, timeout_seconds)
        self._inter_host_group: Any = None  # the group of the ranks of all hosts that have the same chunk
        if len(self.peers.hosts) > 1 and len(self.peers.ranks) > 1:
            place = self.peers.ranks.index(self.rank)
            world: Any = self.process_group
            same = [dist.get_global_rank(world, ranks[place]) for ranks in self.peers.hosts]
            timeout = datetime.timedelta(seconds=timeout_seconds)
            self._inter_host_group = dist.new_group(same, timeout, "gloo", use_local_synchronization=True)

    def exchange(self, bucket: Any) -> torch.futures.Future[torch.Tensor]:
        """Return the future of the sum, or mean, of all ranks of a dist.GradBucket."""
        number, buffer = bucket.index(), bucket.buffer()
        if number == 0:
            self._pending, self._expected = [], []  # left over from a step that an exception has ended
            self._step += 1
            # A rank alone on its host has none to share memory with.
            self.uses_shared_memory = self._step > WARMUP_STEPS and len(self.peers.ranks) > 1
        if self.uses_shared_memory and not buffer.is_sparse:
            done = self._begin_sum(number, buffer)
        else:
            done = self._over_group(buffer).get_future().then(lambda done: done.value()[0])
        if self._pending and bucket.is_last():
            self._finish()
        return done  # type: ignore[no-any-return]

    def _over_group(self, bucket: torch.Tensor) -> Any:
        """Begin an all-reduce by the process group."""
        if self.average:
            bucket.div_(self.size)
        return dist.all_reduce(bucket, group=self.process_group, async_op=True)

    def _begin_sum(self, number: int, bucket: torch.Tensor) -> Any:
        """Sum this rank's chunk of a bucket (n,) over its host, and begin to sum it between hosts; return a future."""
        buffers = self._buffers.get(number)
        if buffers is None or (buffers.sums.dtype, len(buffers.sums)) != (bucket.dtype, len(bucket)):
            buffers = self._buffers[number] = self._allocate(bucket)
        if self._step == WARMUP_STEPS + 1:  # the first in memory
            self._expected.append((buffers.sums, *self._sum_by_group(bucket)))
        # Divided before they are added, as torch does: sums of float16 may overflow.
        factor = 1 / self.size if self.average else 1.0
        for part, row in buffers.published:
            torch.mul(bucket[part], factor, out=row)
        self.peers.barrier()  # all have written their rows
        torch.add(buffers.peer_chunks[0], bucket[buffers.chunk], alpha=factor, out=buffers.chunk_sum)
        for other in buffers.peer_chunks[1:]:
            buffers.chunk_sum.add_(other)
        work = None
        if self._inter_host_group is not None and len(buffers.chunk_sum):
            work = dist.all_reduce(buffers.chunk_sum, group=self._inter_host_group, async_op=True)
        self._pending.append(PendingExchange(buffers.sums, torch.futures.Future(), work))
        return self._pending[-1].done

    def _finish(self) -> None:
        """Complete the sums of all buckets of this step; DistributedDataParallel copies them from shared memory."""
        for begun in self._pending:
            if begun.inter_host_work is not None:
                self._wait(begun.inter_host_work)
        self.peers.barrier()  # all chunks are there; they are read before the next step's first barrier
        for sums, expected, rounding in self._expected:
            if not torch.isclose(sums, expected, rtol=0.0, atol=rounding, equal_nan=True).all():
                raise RuntimeError("sums of gradients in shared memory differ from those of the process group")
        self._expected = []
        for begun in self._pending:
            begun.done.set_result(begun.sums)
        self._pending = []

    def _wait(self, work: Any) -> None:
        try:
            work.wait()
        except RuntimeError as error:
            raise LostRankError(f"rank {self.rank} has lost a rank on another host: {error}") from error

    def _sum_by_group(self, bucket: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Return the process group's sums, and by how much those in memory may differ because of rounding."""
        expected = bucket.clone()
        self._over_group(expected).wait()
        largest = bucket.abs().nan_to_num(0.0, 0.0).amax().reshape(1).double()  # the largest finite gradient
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.process_group)
        sums = float(largest) * (1 if self.average else self.size)
        return expected, 2 * self.size * torch.finfo(bucket.dtype).eps * sums

    def _allocate(self, bucket: torch.Tensor) -> BucketBuffers:
        """Allocate the memory for buckets like this: a row for the sums, then one for each rank.

        DistributedDataParallel looks for its parts of the sums from the beginning of their storage.
        """
        ranks = self.peers.ranks
        row_bytes = -(-bucket.nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        table = self.peers.allocate((len(ranks) + 1) * row_bytes).view(len(ranks) + 1, row_bytes)
        sums, *rows = (row[: bucket.nbytes].view(bucket.dtype) for row in table)
        place = ranks.index(self.rank)
        begin, end = chunk_bounds(bucket, len(ranks))[place : place + 2]
        row, chunk = rows.pop(place), slice(begin, end)
        published = [(part, row[part]) for part in (slice(begin), slice(end, None)) if len(row[part])]
        return BucketBuffers(published, chunk, [other[chunk] for other in rows], sums[chunk], sums)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as None: a copied model has no hook."""
        return type(None), ()
