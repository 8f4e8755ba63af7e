"""Is the slow worker named? Delays in each step of one rank, in each phase, in scripts and in our own trainings."""

from __future__ import annotations

import tempfile
from pathlib import Path

from rich.table import Table

from benchmarks.setup import out, progress
from dpexp.analysis.table import aggregate
from dpexp.analysis.table_row import Row
from dpexp.entry_point import hold_measurement_lock
from dpexp.measurement import job
from testbed.delays import PHASES, Case, prepared

TOLERANCE = 0.2  # of the delay's length
KINDS = ("script", "sync_dp", "ddp")


CASES = [
    Case(kind, workers, place, rank)
    for kind in KINDS
    for workers, places in {
        2: [*((place, rank) for place in PHASES for rank in (0, 1)), ("none", 0), ("none", 0)],
        4: [*((place, rank) for rank, place in enumerate(PHASES)), ("none", 0)],
    }.items()
    for place, rank in places
] + [Case("script", 2, "samples"), Case("sync_dp", 2, "none", model="cnn"), Case("ddp", 2, "none", model="cnn")]


def run(rounds: int, cases: list[Case] = CASES) -> None:
    """Print a line for each case: who was named in each round, and how often that was right."""
    table = Table(box=None)
    for head in ("training", "model", "workers", "3 ms in", "of rank", "named: rank, phase, ms, % of steps", "right"):
        table.add_column(head)
    rows: list[list[Row]] = [[] for _ in cases]
    with hold_measurement_lock():
        for number in range(rounds):
            for case, found in zip(cases, rows, strict=True):
                progress.print(f"round {number + 1} of {rounds}: {case}")
                found.append(measured(case, _job_seconds(case)))
    for case, found in zip(cases, rows, strict=True):
        right = f"{sum(_is_right(case, row) for row in found)} of {rounds}"
        rank = str(case.rank) if case.place in PHASES else "-"
        table.add_row(case.kind, case.model, str(case.workers), case.place, rank, "; ".join(map(_named, found)), right)
    out.print(table)


def measured(case: Case, seconds: float) -> Row:
    """One job of so many seconds."""
    config, launcher = prepared(case, f"measurement.max_seconds={seconds}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job.measure_job(config, folder, launcher=launcher)
        (row,) = aggregate([folder]).measured
    return row


def _named(row: Row) -> str:
    if row.slow_rank is None:
        return f"another {row.slow_phase} {1e3 * row.slow_seconds:.2f}" if row.slow_phase else "-"
    return f"{row.slow_rank} {row.slow_phase} {1e3 * row.slow_seconds:.2f} {100 * row.slow_share:.0f} %"


def _job_seconds(case: Case) -> float:
    """Enough for some tens of traced steps: a script's are one of some turns, and four workers' take 20 ms."""
    if case.kind != "script":
        return 10.0
    return 20.0 if case.workers == 2 and case.place in PHASES else 40.0


def _is_right(case: Case, row: Row) -> bool:
    """Whether a row names whom it should."""
    phase = PHASES.get(case.place)
    if phase is None:
        return row.slow_rank is None and bool(row.slow_phase) == (case.place == "samples")
    named = (row.slow_rank, row.slow_phase) == (case.rank, phase)
    return named and abs(row.slow_seconds / case.seconds - 1) < TOLERANCE
