"""Faults put into real workers on purpose, for the instrument to find. Imports no more than workers have already."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from dpexp import models, worker
from dpexp.groups import Group
from dpexp.strategies.sync_dp import ChunkSum


@dataclass(frozen=True)
class Fault:
    """What is done to workers on purpose, in every step: seconds of useless work."""

    compute_seconds: float = 0.0
    compute_rank: int = 0
    communicate_seconds: float = 0.0  # on all ranks


class FaultyGroup(Group):
    """Workers with faults: one for each of the first trainings, then always `then`, or the last."""

    def __init__(self, faults: Sequence[Fault], then: Fault | None = None) -> None:
        self._faults, self._then = list(faults), faults[-1] if then is None else then

    def run(self, work: worker.Work, on_epoch: Callable[[int], None]) -> list[worker.WorkerReport]:
        """See Group."""
        fault = self._faults.pop(0) if self._faults else self._then
        self.target = partial(_run_with_fault, fault)
        return super().run(work, on_epoch)


def _run_with_fault(fault: Fault, rank: int, *arguments: Any) -> worker.WorkerReport:
    """In a worker process: `worker.run`, with delays where the fault wants them."""
    if fault.compute_seconds and rank == fault.compute_rank:
        build = models.build
        models.build = lambda *own: _delayed(build(*own), fault.compute_seconds)
    if fault.communicate_seconds:
        compute = ChunkSum.compute

        def late(chunk: ChunkSum) -> Any:
            _spend(fault.communicate_seconds)
            return compute(chunk)

        ChunkSum.compute = late  # type: ignore
    return worker.run(rank, *arguments)


def _delayed(model: nn.Module, seconds: float) -> nn.Module:
    model.register_forward_pre_hook(lambda *_: _spend(seconds))
    return model


def _spend(seconds: float) -> None:
    """Keep the core busy: a sleeping process would let others use it."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass
