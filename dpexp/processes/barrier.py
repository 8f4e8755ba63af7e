"""A barrier between processes, built from eventfds, so that nothing needs to be cleaned up."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable

from dpexp.machine.environment import usable_cores
from dpexp.processes.descriptors import Descriptor

SPIN_SECONDS = 200e-6  # several times the cost of a wake-up, so that a short delay doesn't put ranks to sleep
FLAGS = os.EFD_SEMAPHORE | os.EFD_NONBLOCK | os.EFD_CLOEXEC


class Counter(Descriptor):
    """A semaphore between processes: an eventfd, zero if it is new.

    The kernel's locks order memory: what was written before `post` is seen after `wait`.
    """

    def __init__(self, number: int | None = None) -> None:
        super().__init__(os.eventfd(0, FLAGS) if number is None else number)
        self._poll = select.poll()
        self._poll.register(self.fd, select.POLLIN)

    def post(self) -> None:
        """Add one."""
        os.eventfd_write(self.fd, 1)

    def sleep(self) -> None:
        """Return when the counter is positive."""
        self._poll.poll()

    def wait(self, spin_seconds: float, sleep: Callable[[Counter], None] = sleep) -> None:
        """Take one; if there is none for `spin_seconds`, sleep until there is."""
        deadline = time.perf_counter() + spin_seconds
        while True:
            try:
                os.eventfd_read(self.fd)
                return
            except BlockingIOError:
                if time.perf_counter() >= deadline:
                    sleep(self)


def spin_seconds(threads: int) -> float:
    """Return how long to spin before sleeping: not at all if this many threads must share cores."""
    return 0.0 if threads > usable_cores() else SPIN_SECONDS


class BarrierMember:
    """One rank's part in a dissemination barrier.

    In round k, rank r posts to rank r + 2^k and waits for rank r - 2^k; after log2(w) rounds each has
    heard from all (Hensgen, Finkel and Manber, "Two algorithms for barrier synchronization", 1988).
    Counters accumulate, so a rank may enter the next barrier before a slow one has left this one.
    """

    def __init__(self, rounds: list[tuple[Counter, Counter]], spin_seconds: float) -> None:
        """`rounds` contains the counter to post and the one to wait for, for each round."""
        self._rounds, self._spin_seconds = rounds, spin_seconds

    @classmethod
    def create(cls, world_size: int, spin_seconds: float) -> list[BarrierMember]:
        """Return the members of a new barrier, one per rank."""
        rounds = range((world_size - 1).bit_length())
        counters = [[Counter() for _ in rounds] for _ in range(world_size)]
        return [
            cls([(counters[(rank + 2**k) % world_size][k], counters[rank][k]) for k in rounds], spin_seconds)
            for rank in range(world_size)
        ]

    def wait(self) -> None:
        """Return when every rank has called it as often as this one."""
        for post_to, wait_for in self._rounds:
            post_to.post()
            wait_for.wait(self._spin_seconds)
