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
from dpexp.position import here
from dpexp.strategies.sync_dp import ChunkSum


@dataclass(frozen=True)
class Fault:
    """What is done to workers on purpose, in every step: useless work."""

    compute_seconds: float = 0.0
    compute_rank: int = 0
    communicate_seconds: float = 0.0  # on all ranks
    slowdown: float | None = None  # every step takes so many times as long as it did, whatever the machine's speed


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
        _before_each_forward(lambda: _spend(fault.compute_seconds))
    if fault.slowdown is not None:
        _before_each_forward(_Slowdown(fault.slowdown))
    if fault.communicate_seconds:
        compute = ChunkSum.compute

        def late(chunk: ChunkSum) -> Any:
            _spend(fault.communicate_seconds)
            return compute(chunk)

        ChunkSum.compute = late  # type: ignore
    return worker.run(rank, *arguments)


def _before_each_forward(work: Callable[[], None]) -> None:
    """The model that this worker builds does `work` first."""
    build = models.build

    def build_hooked(*arguments: Any) -> nn.Module:
        model = build(*arguments)
        model.register_forward_pre_hook(lambda *_: work())
        return model

    models.build = build_hooked  # type: ignore[assignment]


class _Slowdown:
    """Spends a share of the time that has passed since it was called last: of one step."""

    def __init__(self, slowdown: float) -> None:
        self._share = slowdown - 1
        self._left = 0.0

    def __call__(self) -> None:
        _, steps, *_ = here.state()
        if steps:  # what lies before the first step isn't one
            _spend(self._share * (time.perf_counter() - self._left))
        self._left = time.perf_counter()


def _spend(seconds: float) -> None:
    """Keep the core busy: a sleeping process would let others use it."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass
