"""The ranks of a process group that share the memory of a host: they synchronize, and notice when one has ended.

Memory and wake-ups are anonymous (memfd, eventfd) and reach the other ranks through Unix sockets: nothing has a name in
the file system, and nothing is left behind when a process dies. The sockets also tell which rank has died.
"""

import os
import secrets
import select
import socket
import weakref
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dpexp.errors import WorkerError, pluralize
from dpexp.processes.barrier import Counter, spin_seconds
from dpexp.processes.descriptors import Descriptor, is_of_this_user
from dpexp.processes.shared_memory import SharedTensors

MAX_DESCRIPTORS = 250  # in a message


class LostRankError(RuntimeError):
    """Another rank has ended, or has not joined in time."""


class Peers:
    """The ranks of the process group on this host, by their numbers in the group."""

    def __init__(self, group: Any, timeout_seconds: float) -> None:
        """Meet all ranks of the group. Raises ValueError if hosts have different numbers of ranks."""
        self.timeout_seconds = timeout_seconds
        self._rank, self._barrier_count = dist.get_rank(group), 0
        places: list[Any] = [None] * dist.get_world_size(group)
        name = f"\0dpexp/{secrets.token_hex(16)}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(name)  # abstract: no file to clean up
            listener.listen(len(places))
            dist.all_gather_object(places, (_host(), name), group=group)
            hosts: dict[str, list[int]] = {}
            for rank, (host, _) in enumerate(places):
                hosts.setdefault(host, []).append(rank)
            self.hosts, self.ranks = list(hosts.values()), hosts[_host()]
            if len({len(ranks) for ranks in self.hosts}) > 1:
                on_each = ", ".join(pluralize(len(ranks), "rank") for ranks in self.hosts)
                raise ValueError(f"{len(hosts)} hosts with {on_each}: shared memory needs the same number on each")
            self._sockets = self._connect(listener, [name for _, name in places])
        size, place = len(self.ranks), self.ranks.index(self._rank)
        rounds = [2**power for power in range((size - 1).bit_length())]
        counters = [Counter() for _ in rounds]
        self._send([counter.fd for counter in counters])
        theirs = {rank: [Counter(number) for number in self._receive(rank)] for rank in self._sockets}
        # A dissemination barrier: of each round the counter to post and the one to wait for, see barrier.py.
        self._rounds = [(theirs[self.ranks[(place + step) % size]][at], counters[at]) for at, step in enumerate(rounds)]
        self._spin_seconds = spin_seconds(size * torch.get_num_threads())
        self._polls = {counter: self._poll(counter) for counter in counters}
        self._exited_ranks: list[int] = []  # ranks that ended after they had completed the last barrier
        open_peers.add(self)
        # Of each rank: posts so far, and completed barriers.
        counts = self.allocate(2 * len(places) * 8)
        self._posted, self._barriers_completed = counts.view(torch.int64).view(2, len(places)).numpy()

    def barrier(self) -> None:
        """Return when all ranks of the host have called this. Raises LostRankError."""
        if self._exited_ranks:
            raise self._lost_rank_error(self._exited_ranks[0])
        self._barrier_count += 1
        for post_to, wait_for in self._rounds:
            self._posted[self._rank] += 1
            post_to.post()
            wait_for.wait(self._spin_seconds, self._sleep)
        self._barriers_completed[self._rank] = self._barrier_count

    def allocate(self, size_bytes: int) -> torch.Tensor:
        """Return `size_bytes` zero bytes that all ranks share; all call it together.

        Raises RuntimeError if memory is short.
        """
        layout = {"bytes": ((size_bytes,), torch.uint8)}
        if self._rank != self.ranks[0]:
            (number,) = self._receive(self.ranks[0])
            return SharedTensors(Descriptor(number), layout)["bytes"]
        try:
            tensors = SharedTensors.allocate(layout)
        except WorkerError as error:
            raise RuntimeError(f"{str(error).partition(';')[0]}; remove the call of use_shared_memory") from error
        self._send([tensors.file.fd])
        return tensors["bytes"]

    def _sleep(self, counter: Counter) -> None:
        """Return when the counter is positive. Raises LostRankError."""
        ready = {number for number, _ in self._polls[counter].poll(1e3 * self.timeout_seconds)}
        if not ready:
            # Each rank that waits has posted more often than the one that it waits for.
            late = min(self.ranks, key=lambda rank: int(self._posted[rank]))
            raise self._timeout_error(late)
        if counter.fd in ready:
            return
        for rank, end in self._sockets.items():
            if end.fileno() in ready:
                if self._barriers_completed[rank] < self._barrier_count:
                    raise self._lost_rank_error(rank)
                self._exited_ranks.append(rank)
                for poll in self._polls.values():
                    poll.unregister(end)

    def _poll(self, counter: Counter) -> select.poll:
        """Return a poll object that wakes at the counter and at another rank's end."""
        poll = select.poll()
        poll.register(counter.fd, select.POLLIN)
        for end in self._sockets.values():
            poll.register(end, select.POLLRDHUP)
        return poll

    def _timeout_error(self, rank: int) -> LostRankError:
        return LostRankError(f"rank {rank} has not joined the exchange of gradients for {self.timeout_seconds:g} s")

    def _lost_rank_error(self, rank: int) -> LostRankError:
        return LostRankError(f"rank {rank} exited while rank {self._rank} was exchanging gradients with it")

    def _connect(self, listener: socket.socket, names: list[str]) -> dict[int, socket.socket]:
        """Return a socket to each other rank of the host; the higher rank of two connects."""
        ends = {}
        for rank in self.ranks[: self.ranks.index(self._rank)]:
            ends[rank] = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ends[rank].connect(names[rank])
            ends[rank].send(str(self._rank).encode())
        listener.settimeout(self.timeout_seconds)
        while len(ends) < len(self.ranks) - 1:
            try:
                end, _ = listener.accept()
            except TimeoutError:
                raise self._timeout_error(min({*self.ranks} - {self._rank, *ends})) from None
            if is_of_this_user(end):  # others may see the name, too
                ends[int(end.recv(16))] = end
        for end in ends.values():
            end.settimeout(self.timeout_seconds)
        return dict(sorted(ends.items()))

    def _send(self, descriptors: list[int]) -> None:
        for rank, end in self._sockets.items():
            try:
                socket.send_fds(end, [b"."], descriptors)
            except OSError as error:
                raise self._lost_rank_error(rank) from error

    def _receive(self, rank: int) -> list[int]:
        try:
            received, descriptors, _, _ = socket.recv_fds(self._sockets[rank], 1, MAX_DESCRIPTORS)
        except TimeoutError:
            raise self._timeout_error(rank) from None
        except OSError as error:
            raise self._lost_rank_error(rank) from error
        if not received:
            raise self._lost_rank_error(rank)
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        return descriptors


open_peers: weakref.WeakSet[Peers] = weakref.WeakSet()  # in this process


def _close_peers_after_fork() -> None:
    """Close the sockets in a forked process, such as a data loader's worker, so that a rank's end is noticed."""
    for peers in open_peers:
        for end in peers._sockets.values():
            end.close()


os.register_at_fork(after_in_child=_close_peers_after_fork)


def _host() -> str:
    """Return the same text in processes that can share memory: with the same kernel and network namespace."""
    return Path("/proc/sys/kernel/random/boot_id").read_text() + str(Path("/proc/self/ns/net").readlink())
