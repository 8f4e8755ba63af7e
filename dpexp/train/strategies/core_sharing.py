"""More workers than cores: the ranks of a core compute one after the other in each step, so that its caches stay warm.

The ranks of a core are a group. The first one computes its gradient and publishes it; each further one computes its own
and adds it to that. The last one thus has the gradient of the group, and exchanges it with the other groups.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass

import torch

from dpexp.config.built_in import BuiltInConfig
from dpexp.machine.environment import usable_cores
from dpexp.processes.barrier import Counter


@dataclass(frozen=True)
class CoreShare:
    """One rank's place in its core's order: its ranks compute one after the other, and the first follows the last."""

    group: int
    is_first: bool
    is_last: bool
    counter: Counter  # 1 when this rank may compute
    next_counter: Counter  # the next rank's

    @classmethod
    def create(cls, ranks: int, groups: int) -> list[CoreShare]:
        """Return the shares of all ranks: rank r belongs to group r mod `groups`."""
        counters, shares = [Counter() for _ in range(ranks)], []
        for rank, counter in enumerate(counters):
            group, is_first, is_last = rank % groups, rank < groups, rank + groups >= ranks
            next_counter = counters[group if is_last else rank + groups]
            shares.append(cls(group, is_first, is_last, counter, next_counter))
            if is_first:
                counter.post()
        return shares

    def wait(self) -> None:
        """Return when this rank may compute."""
        self.counter.wait(0.0)

    def pass_on(self) -> None:
        """Let the next rank compute."""
        self.next_counter.post()


def group_count(config: BuiltInConfig) -> int:
    """Return the number of groups: one per core if single-threaded workers outnumber the cores, else one per worker."""
    cores = usable_cores()
    share_cores = config.workers > cores and config.threads_per_worker == 1
    return cores if share_cores else config.workers


def pin_to_core(number: int, threads: int) -> None:
    """Pin this process to a core if this many threads leave no core free: else two often wake up on the same core."""
    cores = sorted(os.sched_getaffinity(0))
    if threads >= len(cores) and torch.get_num_threads() == 1:
        with contextlib.suppress(OSError):  # a sandbox may forbid it
            os.sched_setaffinity(0, {cores[number % len(cores)]})
