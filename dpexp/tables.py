"""The table for people, and its answer in a sentence: the same in the terminal and on the page."""

from __future__ import annotations

import math

import pandas as pd

from dpexp.aggregate import FEWER_UPDATES, OVERSUBSCRIBED, Summary

HEADS = (
    "configuration",
    "workers",
    "samples",
    "batch",
    "updates",
    "seconds",
    "samples/s",
    "speedup",
    "efficiency",
    "accuracy",
    "remarks",
)


def columns_of(summary: Summary) -> tuple[str, dict[str, tuple[str, ...]]]:
    """What all good rows have in common, in words, and the columns by head in which they differ or have numbers."""
    rows = [_cells(row) for _, row in summary.table[summary.table.status == "ok"].iterrows()]
    columns = dict(zip(HEADS, zip(*rows, strict=True), strict=False))
    common = [head for head in ("configuration", "batch") if len(set(columns.get(head, ()))) == 1]
    text = "; ".join(f"{head}: {columns.pop(head)[0]}" for head in common)
    if not any(columns.get("remarks", ())):
        columns.pop("remarks", None)
    return text, columns


def _cells(row: pd.Series) -> list[str]:
    """One good row of the table as text; what was not measured is a dash."""
    batch = f"{row.local_batch_size} each" if row.batch_scope == "per_worker" else f"{row.global_batch_size} in all"
    return [
        row.series or f"{row.strategy}, {row.model}, {row.data}",
        f"{row.workers}{'*' if row.oversubscribed else ''}",
        f"{row.data_size:,}",
        batch,
        f"{row.updates:,} [{row.baseline_updates:,}]",
        f"{row.seconds:.3f}",
        f"{row.samples_per_second:,.0f}",
        _with_interval(row.speedup, row.speedup_low, row.speedup_high),
        "-" if math.isnan(row.efficiency) else f"{100 * row.efficiency:.0f} %",
        _accuracy(row.test_accuracy, row.baseline_test_accuracy),
        # The brackets and the star say the rest.
        "; ".join(part for part in row.warnings.split("; ") if not part.startswith((FEWER_UPDATES, OVERSUBSCRIBED))),
    ]


def answers(summary: Summary) -> list[str]:
    """For each series a sentence: the best speedup at the most samples, and what it costs in accuracy."""
    table = summary.table
    good = table[(table.status == "ok") & (table.workers > 1) & table.speedup.notna()]
    lines = []
    for label, rows in good.groupby("series", sort=False):
        rows = rows[rows.configured_size == rows.configured_size.max()]
        best = rows.loc[rows.speedup.idxmax()]
        interval = "" if math.isnan(best.speedup_low) else f" ({best.speedup_low:.2f} to {best.speedup_high:.2f})"
        if best.data_scope == "per_worker":
            what = f"{best.workers} workers with {best.configured_size:,} samples each have "
            what += f"{best.speedup:.2f}{interval} times the throughput of one sequential process with its share"
        else:
            what = f"{best.workers} workers on {best.data_size:,} samples train "
            what += f"{best.speedup:.2f}{interval} times as fast as one sequential process"
        lines.append(
            f"{label + ': ' if label else ''}{what}, efficiency {100 * best.efficiency:.0f} %; "
            f"test accuracy {_percent(best.test_accuracy)} after {best.updates:,} updates, "
            f"the baseline's {_percent(best.baseline_test_accuracy)} after {best.baseline_updates:,}."
        )
    return lines


def failures(summary: Summary) -> list[str]:
    """A line for each job without a usable result: its status, what it was, and why."""
    lines = []
    for _, row in summary.table[summary.table.status != "ok"].iterrows():
        known = not pd.isna(row.workers)
        what = f" ({row.strategy}, {row.workers} workers, {row.data_size:,} samples)" if known else ""
        lines.append(f"{row.status}: {row.job}{what}: {row.warnings}")
    return lines


def _with_interval(value: float, low: float, high: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.2f}" if math.isnan(low) else f"{value:.2f} ({low:.2f}–{high:.2f})"


def _accuracy(own: float, baseline: float) -> str:
    return _percent(own) if math.isnan(baseline) else f"{_percent(own)} [{_percent(baseline)}]"


def _percent(fraction: float) -> str:
    return "-" if math.isnan(fraction) else f"{100 * fraction:.1f} %"
