"""Faults that calibration injects into real workers. Imports only what workers have already imported."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F

from dpexp.train import worker
from dpexp.train.strategies.reduce_scatter import ReduceScatter
from dpexp.train.worker import WorkerReport


@dataclass(frozen=True)
class Fault:
    """Useless work in every step of a worker. Called in a worker process, it runs `worker.run` with that work."""

    compute_seconds: float = 0.0  # on rank 1
    communicate_seconds: float = 0.0  # on all ranks
    slowdown: float | None = None  # every step takes this many times as long as before, whatever the machine's speed

    def __call__(self, rank: int, *arguments: Any) -> WorkerReport:
        """Train, and return the report."""
        if self.compute_seconds and rank == 1:
            _call_first(F, "cross_entropy", lambda: _spend(self.compute_seconds))
        if self.slowdown is not None:
            _call_first(F, "cross_entropy", _slowdown(self.slowdown))
        if self.communicate_seconds:
            _call_first(ReduceScatter, "sum_chunk", lambda: _spend(self.communicate_seconds))
        return worker.run(rank, *arguments)


def _call_first(owner: Any, name: str, work: Callable[[], None]) -> None:
    """From now on, do `work` in this process before each call of a function."""
    function = getattr(owner, name)

    def after_work(*arguments: Any, **options: Any) -> Any:
        work()
        return function(*arguments, **options)

    setattr(owner, name, after_work)


def _slowdown(times: float) -> Callable[[], None]:
    """Return a function that spends a share of the time since its last call, which is the time of a step."""
    left = math.inf  # the time before the first step belongs to none

    def spend_share() -> None:
        nonlocal left
        _spend((times - 1) * (time.perf_counter() - left))
        left = time.perf_counter()

    return spend_share


def _spend(seconds: float) -> None:
    """Keep the core busy: a sleeping process would let others use it."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass
