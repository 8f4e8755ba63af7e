"""The table for people, and its answer in a sentence: the same in the terminal and on the page."""

from __future__ import annotations

import math

import pandas as pd

from dpexp.aggregate import Summary

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


def cells(row: pd.Series) -> list[str]:
    """One row of the table as text; what was not measured is a dash."""
    if row.status != "ok":
        settings = "" if pd.isna(row.workers) else f"{row.workers}"
        samples = "" if pd.isna(row.data_size) else f"{row.data_size:,}"
        name = "" if pd.isna(row.strategy) else f"{row.strategy} "
        return [f"{name}{row.status}", settings, samples, *["-"] * 7, f"{row.warnings} [{row.job}]"]
    batch = (
        f"{row.local_batch_size:.0f} each" if row.batch_scope == "per_worker" else f"{row.global_batch_size:.0f} in all"
    )
    return [
        row.series or f"{row.strategy}, {row.model}, {row.data}",
        f"{row.workers}{'*' if row.oversubscribed else ''}",
        f"{row.data_size:,}",
        batch,
        f"{row.updates:,.0f} [{row.baseline_updates:,.0f}]",
        f"{row.seconds:.3f}",
        f"{row.samples_per_second:,.0f}",
        _with_interval(row.speedup, row.speedup_low, row.speedup_high, "{:.2f}"),
        _with_interval(100 * row.efficiency, math.nan, math.nan, "{:.0f} %"),
        _accuracy(row.test_accuracy, row.baseline_test_accuracy),
        # The brackets and the star say the rest.
        "; ".join(part for part in row.warnings.split("; ") if not part.startswith(("fewer updates", "oversub"))),
    ]


def answers(summary: Summary) -> list[str]:
    """For each series a sentence: the best speedup at the most samples, what it costs in accuracy."""
    table = summary.table
    good = table[(table.status == "ok") & (table.workers > 1) & table.speedup.notna()]
    lines = []
    for label, rows in good.groupby("series", sort=False):
        rows = rows[rows.size_per == rows.size_per.max()]
        best = rows.loc[rows.speedup.idxmax()]
        interval = "" if math.isnan(best.speedup_low) else f" ({best.speedup_low:.2f} to {best.speedup_high:.2f})"
        lines.append(
            f"{label + ': ' if label else ''}{best.workers} workers on {best.data_size:,} samples train "
            f"{best.speedup:.2f}{interval} times as fast as one sequential process, "
            f"efficiency {100 * best.efficiency:.0f} %; "
            f"test accuracy {_percent(best.test_accuracy)} after {best.updates:,.0f} updates, "
            f"the baseline's {_percent(best.baseline_test_accuracy)} after {best.baseline_updates:,.0f}."
        )
    bad = table[table.status != "ok"]
    if len(bad):
        lines.append(f"{len(bad)} of {len(table)} jobs have no usable result; the table lists them.")
    return lines


def _with_interval(value: float, low: float, high: float, pattern: str) -> str:
    if math.isnan(value):
        return "-"
    text = pattern.format(value)
    return text if math.isnan(low) else f"{text} ({pattern.format(low)}–{pattern.format(high)})"


def _accuracy(own: float, baseline: float) -> str:
    return _percent(own) if math.isnan(baseline) else f"{_percent(own)} [{_percent(baseline)}]"


def _percent(fraction: float) -> str:
    return "-" if math.isnan(fraction) else f"{100 * fraction:.1f} %"
