"""A barrier between processes that leaks nothing: a few anonymous kernel counters, no names."""

from __future__ import annotations

import os
import select
import time
from multiprocessing import reduction
from typing import Any

_INCREMENT = (1).to_bytes(8, "little")


class Counter:
    """A semaphore between processes: an eventfd where there is one (Linux), else a pipe.

    The kernel's locks order memory: what was written before `post` is seen after `wait`.
    """

    def __init__(self, reader: int, writer: int) -> None:
        self._reader, self._writer = reader, writer
        self._poll = select.poll()
        self._poll.register(reader, select.POLLIN)

    @classmethod
    def create(cls) -> Counter:
        """A counter at zero."""
        if hasattr(os, "eventfd"):
            descriptor = os.eventfd(0, os.EFD_SEMAPHORE | os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            return cls(descriptor, descriptor)
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        return cls(reader, writer)

    def post(self) -> None:
        """Add one."""
        os.write(self._writer, _INCREMENT)

    def wait(self, spin_seconds: float) -> None:
        """Take one; when there is none, look again for `spin_seconds`, then sleep until there is."""
        deadline = time.perf_counter() + spin_seconds
        while True:
            try:
                os.read(self._reader, 8)
            except BlockingIOError:
                if time.perf_counter() >= deadline:
                    self._poll.poll()
            else:
                return

    @property
    def descriptors(self) -> tuple[int, int]:
        """To read from and to write to."""
        return self._reader, self._writer

    def close(self) -> None:
        """Close this process's descriptors."""
        for descriptor in {self._reader, self._writer} - {-1}:
            os.close(descriptor)
        self._reader = self._writer = -1

    def __del__(self) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_counter, (reduction.DupFd(self._reader), reduction.DupFd(self._writer))


def _rebuild_counter(reader: Any, writer: Any) -> Counter:
    return Counter(reader.detach(), writer.detach())


class BarrierMember:
    """One rank's part in a dissemination barrier.

    In round k, rank r posts to rank r + 2^k and waits for rank r - 2^k; after log2(w) rounds each has
    heard from all (Hensgen, Finkel and Manber, "Two algorithms for barrier synchronization", 1988).
    The counters count, so that a rank may enter the next barrier before a slow one has left this one.
    """

    def __init__(self, rounds: list[tuple[Counter, Counter]], spin_seconds: float) -> None:
        self._rounds = rounds  # (the counter to post, the counter to wait for) of each round
        self._spin_seconds = spin_seconds

    @classmethod
    def create(cls, world_size: int, spin_seconds: float) -> list[BarrierMember]:
        """The members of a new barrier, one a rank."""
        rounds = range((world_size - 1).bit_length())
        counters = [[Counter.create() for _ in rounds] for _ in range(world_size)]
        return [
            cls([(counters[(rank + 2**k) % world_size][k], counters[rank][k]) for k in rounds], spin_seconds)
            for rank in range(world_size)
        ]

    @property
    def descriptors(self) -> list[int]:
        """From which `of_descriptors` makes the same member, in another process."""
        return [number for pair in self._rounds for counter in pair for number in counter.descriptors]

    @classmethod
    def of_descriptors(cls, numbers: list[int], spin_seconds: float) -> BarrierMember:
        """The member with these descriptors, which belong to it from now on."""
        counters = [Counter(*ends) for ends in zip(numbers[::2], numbers[1::2], strict=True)]
        return cls(list(zip(counters[::2], counters[1::2], strict=True)), spin_seconds)

    def wait(self) -> None:
        """Return when every rank has called it as often as this one."""
        for post_to, wait_for in self._rounds:
            post_to.post()
            wait_for.wait(self._spin_seconds)

    def close(self) -> None:
        """Close this process's descriptors of the counters that this rank waits for."""
        for _, wait_for in self._rounds:
            wait_for.close()
