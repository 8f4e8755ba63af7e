"""Results as if measured, for what reads them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from conftest import composed

from dpexp.machine import environment
from dpexp.machine.core_latency import CoreLatency
from dpexp.machine.environment import Environment
from dpexp.results.schema import VERSION, Block, Conditions, Distribution, RunResult, Training, WorkerTimes
from dpexp.results.storage import write

MACHINE = replace(environment.describe(), cpu_model="Test CPU", usable_cores=2, logical_cores=2)
QUIET = Conditions(0.0, 0.0, 0.0)


TIMES = WorkerTimes(
    rank=0,
    threads=1,
    seconds=1.0,
    process_cpu_seconds=1.0,
    startup_seconds=0.1,
    warmup_seconds=0.1,
    evaluation_seconds=0.1,
    phases={},
)


def with_phases(own: Training, *workers: dict[str, float]) -> Training:
    """The same training, by workers with the given seconds in each phase."""
    every = [{**phases, "step": sum(phases.values())} for phases in workers]
    distributions = [{name: Distribution(value, value, value, value) for name, value in one.items()} for one in every]
    return replace(own, workers=[replace(TIMES, rank=rank, phases=one) for rank, one in enumerate(distributions)])


def training(seconds: float, accuracy: float | None = None, loss: float | None = 0.5) -> Training:
    return Training([seconds], None, [loss], accuracy, [], [], "00", "torch", [TIMES])


def result(
    *overrides: str,
    seconds: list[float],
    baseline: list[float] | None,
    machine: Environment = MACHINE,
    **changes: Any,
) -> RunResult:
    """A result of the composed job; the first pair of times is of a discarded block."""
    blocks = [
        Block(
            warmup=number == 0,
            order=["baseline", "candidate"],
            candidate=training(one, 0.8 if number == 1 else None),
            baseline=None if baseline is None else training(baseline[number], 0.9 if number == 1 else None),
            best_sequential=None,
            independent=None,
            conditions=QUIET,
            wall_seconds=2.0,
        )
        for number, one in enumerate(seconds)
    ]
    config = composed("measurement.drift=0", *overrides)
    fields: dict[str, Any] = {
        "format": "dpexp-result",
        "version": VERSION,
        "status": "ok",
        "error": None,
        "details": None,
        "started_at": "2026-01-01T00:00:00+00:00",
        "resumed_at": [],
        "config_sha256": config.sha256,
        "config": config,
        "environment": machine,
        "data_seconds": 0.1,
        "blocks": blocks,
        "warnings": [],
        "user_files": {},
    }
    return RunResult(**(fields | changes))


def at_latencies(measured: RunResult, *seconds: float, least: float = 2e-7) -> RunResult:
    """The same result, its blocks measured while cores had these latencies."""
    blocks = [
        replace(block, candidate=replace(block.candidate, core_latency=CoreLatency(latency, least)))
        for block, latency in zip(measured.blocks, seconds, strict=True)
    ]
    return replace(measured, blocks=blocks)


def write_sweep(folder: Path, *results: RunResult) -> Path:
    """Each result in a numbered job folder."""
    for number, one in enumerate(results):
        (folder / str(number)).mkdir(parents=True, exist_ok=True)
        write(one, folder / str(number))
    return folder
