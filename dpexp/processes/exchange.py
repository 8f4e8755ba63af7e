"""Sum the gradients of torch's DistributedDataParallel in shared memory, where gloo sends them through sockets.

    from dpexp import exchange

    model = DistributedDataParallel(model)
    exchange.use_shared_memory(model)  # on every rank, before the first step

It is a communication hook, torch's public interface, for process groups whose ranks are on one host. Each rank copies a
bucket into its row of shared memory; when all have, rank r sums the r-th chunk of all rows; when all have, each copies
the sums back: a reduce-scatter and an all-gather. Rows are added in the order of ranks, so all ranks have the same
sums to the bit.

Memory and wake-ups are anonymous (memfd, eventfd) and reach the other ranks through Unix sockets: nothing has a name in
the file system, and nothing is left, whoever dies. The sockets also tell who has died.
"""

from __future__ import annotations

import os
import secrets
import select
import socket
import statistics
import time
import weakref
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from dpexp.processes.barrier import BarrierMember, Counter, spin_seconds
from dpexp.processes.descriptors import Descriptor, is_of_this_user
from dpexp.processes.shared_memory import ALIGNMENT_BYTES, SharedTensors, chunk_bounds

TIMEOUT_SECONDS = 1800.0  # torch's own
FIRST_STEPS, TRIED_STEPS = 3, 8  # DistributedDataParallel makes its buckets anew in the first; then both take turns
MOST_DESCRIPTORS = 250  # in a message


def use_shared_memory(
    model: DistributedDataParallel, *, only: bool = False, timeout_seconds: float = TIMEOUT_SECONDS
) -> Team:
    """Let the ranks of a model's process group exchange its gradients so; all of them call it, before the first step.

    The process group exchanges in the first steps, then takes turns with shared memory, and the faster of the two goes
    on; with `only`, shared memory does. While that is used, a RuntimeError names a rank that has ended, or that has not
    come for `timeout_seconds`. Raises ValueError where ranks are on several hosts, or gradients are not in the memory
    of the host.
    """
    if any(parameter.device.type != "cpu" for parameter in model.parameters()):
        raise ValueError("the parameters are on a GPU: shared memory exchanges gradients of CPUs only")
    team = Team(model.process_group, only=only, timeout_seconds=timeout_seconds)
    model.register_comm_hook(team, _exchange)
    return team


def _exchange(team, bucket):  # type: ignore[no-untyped-def]  # torch refuses annotations that are strings
    return team.exchange(bucket)


class Team:
    """The ranks of a process group, with what they share."""

    def __init__(
        self, group: Any, average: bool = True, only: bool = False, timeout_seconds: float = TIMEOUT_SECONDS
    ) -> None:
        """All ranks meet, to compute means or sums. Raises ValueError where they are on several hosts."""
        self.group: Any = dist.group.WORLD if group is None else group
        self.average, self._only, self.uses_memory = average, only, False
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self._timeout_seconds, self._meetings, self._step = timeout_seconds, 0, 0
        self._seconds: dict[bool, list[float]] = {True: [], False: []}  # of steps in turn, with memory and without
        self._step_began = 0.0
        self._rows: list[torch.Tensor] = []  # of bytes, one a rank; the last is for the sums
        self._parts: dict[Any, Any] = {}  # of them for buckets of each size and dtype
        places: list[Any] = [None] * self.size
        name = f"\0dpexp/{secrets.token_hex(16)}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(name)  # it has no file, and so can't leave one behind
            listener.listen(self.size)
            dist.all_gather_object(places, (_host(), name), group=group)
            if len(hosts := {host for host, _ in places}) > 1:
                raise ValueError(f"the ranks of this group are on {len(hosts)} hosts: memory is shared within one only")
            self._peers = self._connected(listener, [name for _, name in places])
        rounds = [2**power for power in range((self.size - 1).bit_length())]
        own = [Counter() for _ in rounds]
        self._send([counter.number for counter in own])
        theirs = {rank: [Counter(number) for number in self._receive(rank)] for rank in self._peers}
        both = [(theirs[(self.rank + step) % self.size][at], own[at]) for at, step in enumerate(rounds)]
        spinning = spin_seconds(self.size * torch.get_num_threads())
        self._barrier = BarrierMember([counter for pair in both for counter in pair], spinning, self._sleep)
        self._polls = {counter: self._poll(counter) for counter in own}
        self._gone: list[int] = []  # ranks that ended after they had left the last meeting
        _teams.add(self)
        # How many meetings each rank has come to, and left again.
        self._entered, self._left = self._allocated(2 * self.size * 8).view(torch.int64).view(2, self.size).numpy()

    def exchange(self, bucket: Any) -> Any:
        """The future of a dist.GradBucket that has the sum, or mean, of all ranks."""
        if bucket.index() == 0:
            self._begin_step()
        buffer = bucket.buffer()
        if self.uses_memory and not buffer.is_sparse:
            done: Any = torch.futures.Future()
            done.set_result(self.reduce(buffer))
            return done
        if self.average:
            buffer.div_(self.size)
        return dist.all_reduce(buffer, group=self.group, async_op=True).get_future().then(lambda done: done.value()[0])

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
        self._step += 1
        self._step_began = time.perf_counter()

    def reduce(self, bucket: torch.Tensor) -> torch.Tensor:
        """Replace a bucket (n,) by the sum, or mean, of all ranks' buckets; returns it. All ranks call it together."""
        key = len(bucket), bucket.dtype
        if key not in self._parts:
            self._parts[key] = self._divide(bucket)
        own, sums, total, first, others = self._parts[key]
        own.copy_(bucket)
        if self.average:
            own.div_(self.size)  # before they are added, as torch does: sums of float16 may overflow
        self._meet()  # all have written their rows
        total.copy_(first)
        for other in others:
            total.add_(other)
        self._meet()  # all have written their sums; they read them before they meet for the next bucket's
        return bucket.copy_(sums)

    def _divide(self, bucket: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, list[Any]]:
        """For buckets like this: the own row, the sums, this rank's chunk of them, and that chunk of all rows."""
        if bucket.nbytes > (self._rows[0].nbytes if self._rows else 0):
            row_bytes = -(-bucket.nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
            self._rows = [*self._allocated((self.size + 1) * row_bytes).view(self.size + 1, -1)]
            self._parts.clear()
        *rows, sums = (row[: bucket.nbytes].view(bucket.dtype) for row in self._rows)
        chunk = slice(*chunk_bounds(bucket, self.size)[self.rank : self.rank + 2])
        first, *others = (row[chunk] for row in rows)
        return rows[self.rank], sums, sums[chunk], first, others

    def _meet(self) -> None:
        """Return when all ranks have called it."""
        if self._gone:
            raise self._ended(self._gone[0])
        self._meetings += 1
        self._entered[self.rank] = self._meetings
        self._barrier.wait()
        self._left[self.rank] = self._meetings

    def _sleep(self, counter: Counter) -> None:
        """Return when the counter may be taken. Raises RuntimeError where a rank has ended, or doesn't come."""
        ready = {number for number, _ in self._polls[counter].poll(1e3 * self._timeout_seconds)}
        if not ready:
            late = [rank for rank in self._peers if self._entered[rank] < self._meetings]
            raise RuntimeError(
                f"rank {', '.join(map(str, late))} has not come to exchange gradients for {self._timeout_seconds:g} s"
            )
        if counter.number in ready:
            return
        for rank, peer in self._peers.items():
            if peer.fileno() in ready:
                if self._left[rank] < self._meetings:
                    raise self._ended(rank)
                self._gone.append(rank)
                for poll in self._polls.values():
                    poll.unregister(peer)

    def _poll(self, counter: Counter) -> select.poll:
        """What wakes this rank: the counter, or another rank's end."""
        poll = select.poll()
        poll.register(counter.number, select.POLLIN)
        for peer in self._peers.values():
            poll.register(peer, select.POLLRDHUP)
        return poll

    def forget_peers(self) -> None:
        """In a forked process, such as a worker of a data loader: a rank's end must not wait for it."""
        for peer in self._peers.values():
            peer.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of a model has no hook, whatever DistributedDataParallel notes about it."""
        return type(None), ()

    def _ended(self, rank: int) -> RuntimeError:
        return RuntimeError(f"rank {rank} has ended while rank {self.rank} exchanges gradients with it")

    def _connected(self, listener: socket.socket, names: list[str]) -> dict[int, socket.socket]:
        """A socket to each other rank; the higher one of two connects."""
        peers = {}
        for rank in range(self.rank):
            peers[rank] = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            peers[rank].connect(names[rank])
            peers[rank].send(str(self.rank).encode())
        listener.settimeout(self._timeout_seconds)
        while len(peers) < self.size - 1:
            peer, _ = listener.accept()
            if is_of_this_user(peer):  # others may see the name, too
                peers[int(peer.recv(16))] = peer
        for peer in peers.values():
            peer.settimeout(self._timeout_seconds)
        return dict(sorted(peers.items()))

    def _allocated(self, size_bytes: int) -> torch.Tensor:
        """So many bytes that all ranks share. Raises WorkerError where memory is short."""
        layout = {"bytes": ((size_bytes,), torch.uint8)}
        if self.rank:
            (number,) = self._receive(0)
            return SharedTensors(Descriptor(number), layout)["bytes"]
        tensors = SharedTensors.allocate(layout)
        self._send([tensors.file.number])
        return tensors["bytes"]

    def _send(self, descriptors: list[int]) -> None:
        for rank, peer in self._peers.items():
            try:
                socket.send_fds(peer, [b"."], descriptors)
            except OSError as error:
                raise self._ended(rank) from error

    def _receive(self, rank: int) -> list[int]:
        try:
            received, descriptors, _, _ = socket.recv_fds(self._peers[rank], 1, MOST_DESCRIPTORS)
        except OSError as error:
            raise self._ended(rank) from error
        if not received:
            raise self._ended(rank)
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        return descriptors


_teams: weakref.WeakSet[Team] = weakref.WeakSet()


def _forget_peers() -> None:
    for team in _teams:
        team.forget_peers()


os.register_at_fork(after_in_child=_forget_peers)


def _host() -> str:
    """The same for processes that can share memory: those of one kernel and one network namespace."""
    return Path("/proc/sys/kernel/random/boot_id").read_text() + str(Path("/proc/self/ns/net").readlink())
