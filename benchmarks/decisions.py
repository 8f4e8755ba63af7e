"""Are the conclusions right? Choices of workers on held-out measurements."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.table import Table

from benchmarks.setup import command, out
from dpexp.analysis.decision.choice import Choice, choose
from dpexp.analysis.table_row import Row

SETTINGS = {
    "sync_dp, batch 64": ["data.size=10000"],
    "ddp, batch 1,024": ["strategy=ddp", "batch.size=1024", "data.size=20480"],
}


def run(rounds: int) -> None:
    """Sweep each of the settings 4 x `rounds` times; what one sweep concludes is held against all the others."""
    table = Table(box=None)
    for head in (
        "4 sweeps a round of workers=1,2",
        "chosen",
        "claimed",
        "right",
        "expected cost",
        "loss",
    ):
        table.add_column(head, justify="left" if head == "chosen" or head[0] == "4" else "right")
    for name, overrides in SETTINGS.items():
        with tempfile.TemporaryDirectory() as temporary:
            folders = [Path(temporary) / str(number) for number in range(4 * rounds)]
            sweeps = [command("-m", "workers=1,2", *overrides, folder=folder)[0] for folder in folders]
            table.add_row(name, *_held_out(sweeps))
    out.print(table)


def _held_out(sweeps: Sequence[Sequence[Row]]) -> tuple[str, ...]:
    """How often the choice of one sweep is what the mean of all others says, and what it costs where it isn't."""
    choices, right, losses = [], 0, []
    for number, rows in enumerate(sweeps):
        choice = choose(rows)
        if choice is None:
            continue
        speeds = _speeds([other for at, other in enumerate(sweeps) if at != number])
        best = max(speeds.values())
        right += speeds.get(choice.name) == best
        losses.append(1 - speeds.get(choice.name, math.nan) / best)
        choices.append(choice)
    return (
        _names(choices),
        f"{100 * np.mean([choice.probability for choice in choices]):.0f} %",
        f"{right} of {len(choices)}",
        f"{100 * np.mean([choice.expected_cost for choice in choices]):.2f} %",
        f"{100 * np.nanmean(losses):.2f} %",
    )


def _names(choices: Sequence[Choice]) -> str:
    names = [choice.name for choice in choices]
    return ", ".join(f"{name} ({names.count(name)})" for name in sorted(set(names)))


def _speeds(sweeps: Sequence[Sequence[Row]]) -> dict[str, float]:
    """The geometric means of the speedups of each option."""
    logs: dict[str, list[float]] = {"one process with 1 thread": [0.0]}
    for rows in sweeps:
        for row in (row for row in rows if row.workers == 2):
            logs.setdefault("2 workers", []).append(math.log(row.speedup.value))
            if row.best_sequential_threads == 2:
                best = math.log(row.speedup.value / row.best_sequential_speedup.value)
                logs.setdefault("one process with 2 threads", []).append(best)
    return {name: math.exp(np.mean(values)) for name, values in logs.items()}
