"""Results as if measured, for what reads them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from conftest import composed

from dpexp import environment
from dpexp.conditions import Conditions
from dpexp.environment import Environment
from dpexp.results import Block, RunResult, Training, write

MACHINE = replace(environment.describe(), cpu_model="Test CPU", usable_cores=2, logical_cores=2)
QUIET = Conditions(0.01, 0.01, 0.0, 0.0, 0.0)


def training(seconds: float, accuracy: float | None = None, loss: float | None = 0.5) -> Training:
    return Training(seconds, [loss], None, accuracy, [], [], "00", "torch", seconds + 0.1, [{"rank": 0, "threads": 1}])


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
            best=None,
            unsynchronized=None,
            independent=None,
            conditions=QUIET,
        )
        for number, one in enumerate(seconds)
    ]
    fields: dict[str, Any] = {
        "format": "dpexp-result",
        "version": 2,
        "status": "ok",
        "error": None,
        "details": None,
        "started_at": "2026-01-01T00:00:00+00:00",
        "config": composed(*overrides),
        "environment": machine,
        "data_seconds": 0.1,
        "doubts": [],
        "blocks": blocks,
    }
    return RunResult(**(fields | changes))


def write_sweep(folder: Path, *results: RunResult) -> Path:
    """Each result in a numbered job folder."""
    for number, one in enumerate(results):
        (folder / str(number)).mkdir(parents=True, exist_ok=True)
        write(one, folder / str(number))
    return folder
