"""Sum the gradients of torch's DistributedDataParallel in shared memory, where gloo sends them through sockets.

    from dpexp import exchange

    model = DistributedDataParallel(model)
    exchange.use_shared_memory(model)  # on every rank, before the first step

It is a communication hook, torch's public interface. Each rank copies a bucket into its row of shared memory; when all
have, rank r sums the r-th chunk of all rows; when all have, each copies the sums: a reduce-scatter and an all-gather.
Rows are added in the order of ranks, so all ranks have the same sums to the bit.

Where the ranks are on several hosts, those that have summed the same chunk all-reduce it over the network between the
two steps, while backward goes on. So a host sends each sum once, whatever the number of its ranks, and all of them send
at the same time.
"""

from __future__ import annotations

import datetime
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from dpexp.processes.peers import LostRankError, Peers
from dpexp.processes.shared_memory import ALIGNMENT_BYTES, chunk_bounds

TIMEOUT_SECONDS = 1800.0  # torch's own
FIRST_STEPS, TRIED_STEPS = 3, 8  # DistributedDataParallel makes its buckets anew in the first; then both take turns


def use_shared_memory(
    model: DistributedDataParallel, *, only: bool = False, timeout_seconds: float = TIMEOUT_SECONDS
) -> Team:
    """Let the ranks of a model's process group exchange its gradients so; all of them call it, before the first step.

    The process group exchanges in the first steps, then takes turns with shared memory, and the faster of the two goes
    on; with `only`, shared memory does. The first sums in memory are compared with the process group's: a RuntimeError
    tells where they differ by more than rounding. While memory is used, a LostRankError (a RuntimeError) names a rank
    that has ended, or that has not come for `timeout_seconds`. Each host needs the memory of (ranks + 1) gradients; a
    RuntimeError tells where it is short. Raises ValueError where hosts have different numbers of ranks, or gradients
    are not in the memory of the host.
    """
    if any(parameter.device.type != "cpu" for parameter in model.parameters()):
        raise ValueError("the parameters are on a GPU: shared memory exchanges gradients of CPUs only")
    team = Team(model.process_group, only=only, timeout_seconds=timeout_seconds)
    model.register_comm_hook(team, _exchange)
    return team


def _exchange(team, bucket):  # type: ignore[no-untyped-def]  # torch refuses annotations that are strings
    return team.exchange(bucket)


@dataclass(frozen=True)
class Area:
    """The shared memory for one bucket."""

    own: torch.Tensor  # this rank's row
    sums: torch.Tensor  # of all rows
    total: torch.Tensor  # this rank's chunk of them
    parts: list[torch.Tensor]  # the same chunk of each row


@dataclass
class Exchange:
    """Of one bucket, in one step."""

    bucket: torch.Tensor
    area: Area
    done: Any = field(default_factory=torch.futures.Future)
    between: Any = None  # the all-reduce between hosts, where it was begun
    expected: torch.Tensor | None = None  # what the process group has summed
    rounding: float = 0.0  # by how much that may differ


class Team:
    """The ranks of a process group, with what they share."""

    def __init__(
        self, group: Any, average: bool = True, only: bool = False, timeout_seconds: float = TIMEOUT_SECONDS
    ) -> None:
        """All ranks meet, to compute means or sums. Raises ValueError where hosts have different numbers of ranks."""
        self.group: Any = dist.group.WORLD if group is None else group
        self.average, self._only, self.uses_memory = average, only, False
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self._step = 0
        self._seconds: dict[bool, list[float]] = {True: [], False: []}  # of steps in turn, with memory and without
        self._step_began = 0.0
        self._areas: dict[int, Area] = {}  # by the bucket's number
        self._begun: list[Exchange] = []  # in this step
        self.peers = Peers(self.group, timeout_seconds)
        self._between: Any = None  # the group of the ranks of all hosts that have the same chunk
        if len(self.peers.hosts) > 1:
            place = self.peers.ranks.index(self.rank)
            world: Any = self.group
            same = [dist.get_global_rank(world, ranks[place]) for ranks in self.peers.hosts]
            timeout = datetime.timedelta(seconds=timeout_seconds)
            self._between = dist.new_group(same, timeout, "gloo", use_local_synchronization=True)

    def exchange(self, bucket: Any) -> Any:
        """The future of a dist.GradBucket that has the sum, or mean, of all ranks."""
        if bucket.index() == 0:
            self._begin_step()
        if self.uses_memory and not bucket.buffer().is_sparse:
            done = self._begin(bucket.index(), bucket.buffer())
        else:
            done = self._over_group(bucket.buffer()).get_future().then(lambda done: done.value()[0])
        if bucket.is_last() and self._begun:
            self._finish()
        return done

    def _over_group(self, bucket: torch.Tensor) -> Any:
        """The process group's all-reduce, begun."""
        if self.average:
            bucket.div_(self.size)
        return dist.all_reduce(bucket, group=self.group, async_op=True)

    def _begin_step(self) -> None:
        """Choose the way: the process group's until the buckets are final, both in turn, then the faster one."""
        now, tried = time.perf_counter(), self._step - FIRST_STEPS
        if 0 < tried <= 2 * TRIED_STEPS:
            self._seconds[self.uses_memory].append(now - self._step_began)
        if self._only:
            self.uses_memory = tried >= 0
        elif 0 <= tried < 2 * TRIED_STEPS:
            self.uses_memory = tried // 2 % 2 == 0  # two and two: each way meets both kinds of steps that take turns
        elif tried == 2 * TRIED_STEPS:
            in_memory, over_group = (statistics.median(self._seconds[way]) for way in (True, False))
            choice = torch.tensor([in_memory <= over_group])
            dist.broadcast(choice, dist.get_global_rank(self.group, 0), group=self.group)
            self.uses_memory = bool(choice)
            if not self.uses_memory:
                self._areas.clear()
        self._step += 1
        self._begun = []
        self._step_began = time.perf_counter()

    def _begin(self, number: int, bucket: torch.Tensor) -> Any:
        """Sum this rank's chunk of a bucket (n,) over its host, and begin to do so between hosts; returns a future."""
        area = self._areas.get(number)
        if area is None or (area.own.dtype, len(area.own)) != (bucket.dtype, len(bucket)):
            area = self._areas[number] = self._allocated(bucket)
        exchange = Exchange(bucket, area)
        if self._step == FIRST_STEPS + 1:  # the first in memory
            self._expect(exchange)
        # Divided before they are added, as torch does: sums of float16 may overflow.
        torch.mul(bucket, 1 / self.size if self.average else 1.0, out=area.own)
        self.peers.meet()  # all have written their rows
        torch.add(area.parts[0], area.parts[1] if len(area.parts) > 1 else 0, out=area.total)
        for other in area.parts[2:]:
            area.total.add_(other)
        if self._between is not None and len(area.total):
            exchange.between = dist.all_reduce(area.total, group=self._between, async_op=True)
        self._begun.append(exchange)
        return exchange.done

    def _finish(self) -> None:
        """Let all buckets of this step have their sums, which DistributedDataParallel copies from shared memory."""
        for exchange in self._begun:
            if exchange.between is not None:
                self._wait(exchange.between)
        self.peers.meet()  # all chunks are there; they are read before the next step's first meeting
        for exchange in self._begun:
            sums, expected = exchange.area.sums, exchange.expected
            # Where both are infinite or NaN, they don't differ.
            if expected is not None and bool(((sums - expected).abs() > exchange.rounding).any()):
                raise RuntimeError("sums of gradients in shared memory differ from those of the process group")
            exchange.done.set_result(sums)
        self._begun = []

    def _wait(self, between: Any) -> None:
        try:
            between.wait()
        except RuntimeError as error:
            raise LostRankError(f"rank {self.rank} has lost a rank on another host: {error}") from error

    def _expect(self, exchange: Exchange) -> None:
        """Let the process group sum the bucket, too. Each addition of terms rounds, in its way and in ours."""
        exchange.expected = exchange.bucket.clone()
        self._over_group(exchange.expected).wait()
        largest = exchange.bucket.abs().amax().reshape(1).double()
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.group)
        sums = float(largest) * (1 if self.average else self.size)
        exchange.rounding = 2 * self.size * torch.finfo(exchange.bucket.dtype).eps * sums

    def _allocated(self, bucket: torch.Tensor) -> Area:
        """The memory for buckets like this: a row for the sums, then one for each rank.

        DistributedDataParallel looks for its parts of the sums from the beginning of their storage.
        """
        ranks = self.peers.ranks
        row_bytes = -(-bucket.nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        table = self.peers.allocate((len(ranks) + 1) * row_bytes).view(len(ranks) + 1, row_bytes)
        sums, *rows = (row[: bucket.nbytes].view(bucket.dtype) for row in table)
        place = ranks.index(self.rank)
        chunk = slice(*chunk_bounds(bucket, len(ranks))[place : place + 2])
        return Area(rows[place], sums, sums[chunk], [row[chunk] for row in rows])

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of a model has no hook, whatever DistributedDataParallel notes about it."""
        return type(None), ()
