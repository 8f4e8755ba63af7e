"""Faults injected into real workers, for calibration to find. Imports only what workers have imported already."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from dpexp.launchers.local import LocalLauncher
from dpexp.models import architectures
from dpexp.processes.fork_server import Target
from dpexp.processes.heartbeat import heartbeat
from dpexp.strategies.reduce_scatter import ReduceScatter
from dpexp.training import worker
from dpexp.training.worker import Work, WorkerReport


@dataclass(frozen=True)
class Fault:
    """Useless work that workers do in every step."""

    compute_seconds: float = 0.0
    compute_rank: int = 0
    communicate_seconds: float = 0.0  # on all ranks
    slowdown: float | None = None  # every step takes so many times as long as it did, whatever the machine's speed


NONE = Fault()


class FaultyLauncher(LocalLauncher):
    """Puts a fault into the workers of each training that has one, by its name."""

    def __init__(self, faults: Mapping[str, Fault]) -> None:
        self._faults = faults

    def target(self, name: str, work: Work) -> Target:
        """The worker, with its fault."""
        return partial(_run_with_fault, self._faults.get(name, NONE))


def _run_with_fault(fault: Fault, rank: int, *arguments: Any) -> WorkerReport:
    """In a worker process: `worker.run`, with delays where the fault wants them."""
    if fault.compute_seconds and rank == fault.compute_rank:
        _before_each_forward(lambda: _spend(fault.compute_seconds))
    if fault.slowdown is not None:
        _before_each_forward(_Slowdown(fault.slowdown))
    if fault.communicate_seconds:
        sum_chunk = ReduceScatter.sum_chunk

        def late(reduction: ReduceScatter) -> None:
            _spend(fault.communicate_seconds)
            sum_chunk(reduction)

        ReduceScatter.sum_chunk = late  # type: ignore[assignment]
    return worker.run(rank, *arguments)


def _before_each_forward(work: Callable[[], None]) -> None:
    """The model that this worker builds does `work` first."""
    build = architectures.build

    def build_hooked(*arguments: Any) -> nn.Module:
        model = build(*arguments)
        model.register_forward_pre_hook(lambda *_: work())
        return model

    architectures.build = build_hooked  # type: ignore[assignment]


class _Slowdown:
    """Spends a share of the time that has passed since it was called last: of one step."""

    def __init__(self, slowdown: float) -> None:
        self._share = slowdown - 1
        self._left = 0.0

    def __call__(self) -> None:
        if heartbeat.steps:  # the time before the first step belongs to none
            _spend(self._share * (time.perf_counter() - self._left))
        self._left = time.perf_counter()


def _spend(seconds: float) -> None:
    """Keep the core busy: a sleeping process would let others use it."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass
