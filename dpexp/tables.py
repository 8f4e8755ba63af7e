"""The table for people, and its answer in a sentence: the same in the terminal and on the page."""

from __future__ import annotations

import math
import re

import pandas as pd

from dpexp.aggregate import Summary
from dpexp.doubts import FEWER_UPDATES, OVERSUBSCRIBED, TIMED_FOR_ONLY

HEADS = (
    "configuration",
    "workers",
    "samples",
    "batch",
    "updates",
    "seconds",
    "samples/s",
    "speedup",
    "over best",
    "efficiency",
    "accuracy",
    "remarks",
)


def first(lines: list[str], most: int = 20) -> list[str]:
    """The first lines, and how many more there are."""
    more = [f"... and {len(lines) - most:,} more like these: results.csv has all"] if len(lines) > most else []
    return [*lines[:most], *more]


def columns_of(summary: Summary) -> tuple[str, dict[str, tuple[str, ...]]]:
    """What all good rows have in common, in words, and the columns by head in which they differ or have numbers."""
    rows = [_cells(row) for _, row in summary.table[summary.table.status == "ok"].iterrows()]
    columns = dict(zip(HEADS, zip(*rows, strict=True), strict=False))
    common = [head for head in ("configuration", "batch") if len(set(columns.get(head, ()))) == 1]
    text = "; ".join(f"{head}: {columns.pop(head)[0]}" for head in common)
    for head, nothing in (("remarks", ""), ("over best", "-")):
        if set(columns.get(head, ())) == {nothing}:
            columns.pop(head)
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
        _with_interval(row.gain, row.gain_low, row.gain_high),
        "-" if math.isnan(row.efficiency) else f"{100 * row.efficiency:.0f} %",
        _accuracy(row.test_accuracy, row.baseline_test_accuracy),
        "; ".join(text.partition(":")[0] for text in _doubts(row)),
    ]


def answers(summary: Summary) -> list[str]:
    """For each series a sentence: the best speedup at the most samples, and what it costs in accuracy."""
    table = summary.table
    good = table[(table.status == "ok") & (table.workers > 1) & table.speedup.notna()]
    lines = []
    for label, rows in good.groupby("series", sort=False):
        rows = rows[rows.configured_size == rows.configured_size.max()]
        best = rows.loc[rows.speedup.idxmax()]
        interval = _brackets(best.speedup_low, best.speedup_high)
        if best.data_scope == "per_worker":
            what = (
                f"{best.workers} workers with {best.configured_size:,} samples each have {best.speedup:.2f}{interval} "
            )
            what += "times the throughput of one sequential process with its share"
            than_best = "that of the best one found"
        else:
            what = f"{best.workers} workers on {best.data_size:,} samples train {best.speedup:.2f}{interval} "
            what += "times as fast as one sequential process"
            than_best = "as fast as the best one found"
        if not math.isnan(best.gain):
            gain = f"{best.gain:.2f}{_brackets(best.gain_low, best.gain_high)}"
            threads = f"{best.best_threads} thread{'s' if best.best_threads > 1 else ''}"
            what += f", threads alike, and {gain} times {than_best}, with {threads}"
        lines.append(
            f"{label + ': ' if label else ''}{what}; efficiency {100 * best.efficiency:.0f} %; "
            f"test accuracy {_percent(best.test_accuracy)} after {best.updates:,} updates, "
            f"the baseline's {_percent(best.baseline_test_accuracy)} after {best.baseline_updates:,}."
        )
    return lines


NOT_WAITING = {
    "sync_dp": "with the exchange of gradients but nobody waiting",
    "ddp": "as the same workers without any exchange",
}
REASONS = {
    "load_balance": "waiting for the slowest worker of each step: look for what else runs on these cores",
    "communication_efficiency": "exchanging gradients: larger batches exchange them less often",
    "computation_scaling": "the computation itself, which takes more worker time than one process needs alone: "
    "workers share cores, caches and memory",
}


def reasons(summary: Summary) -> list[str]:
    """For each series and worker count, at the most samples: what efficiency is made of, and where most is lost."""
    table = summary.table
    good = table[(table.status == "ok") & (table.workers > 1) & table.parallel_efficiency.notna()]
    lines = []
    for label, rows in good.groupby("series", sort=False):
        for _, row in rows[rows.configured_size == rows.configured_size.max()].iterrows():
            factors = {name: row[name] for name in REASONS if not math.isnan(row[name])}
            if math.isnan(row.load_balance):
                factors = {"parallel_efficiency": row.parallel_efficiency, **factors}
            product = " x ".join(f"{name.replace('_', ' ')} {100 * value:.0f} %" for name, value in factors.items())
            worst = min(factors, key=lambda name: factors[name])
            lost = f" Most is lost in {REASONS[worst]}." if factors[worst] < 0.97 and worst in REASONS else ""
            cores = ""
            if row.oversubscribed:  # whatever the factors are, this is why
                cores = f" ({row.workers} workers on {summary.usable_cores} cores)"
                lost = " The workers wait for each other to leave a core: use fewer."
            lines.append(f"{label + ': ' if label else ''}{row.workers} workers: {product}{cores}.{lost}")
            if not math.isnan(row.independent_speedup):
                lines.append(
                    f"{label + ': ' if label else ''}{row.workers} workers, of an ideal {row.workers}: "
                    f"{_measured(row, 'independent')} as independent processes, which is what the machine allows; "
                    f"{_measured(row, 'unsynchronized')} {NOT_WAITING[row.strategy]}; "
                    f"{row.speedup:.2f}{_brackets(row.speedup_low, row.speedup_high)} as it is."
                )
    return lines


def targets(summary: Summary) -> list[str]:
    """For each configuration with a target accuracy: how much sooner it is reached, and why."""
    lines = []
    table = summary.table
    for _, row in table[(table.status == "ok") & (table.workers > 1) & table.target_accuracy.notna()].iterrows():
        what = f"{row.series + ': ' if row.series else ''}{row.workers} workers, {row.data_size:,} samples: "
        goal = f"{100 * row.target_accuracy:g} % accuracy"
        if math.isnan(row.target_seconds):
            lines.append(f"{what}{goal} was not reached in {row.epochs} epochs by the median seed: raise epochs.")
        elif math.isnan(row.target_speedup):
            lines.append(f"{what}{goal} after {row.target_seconds:.2f} s; the baseline did not reach it.")
        else:
            lines.append(
                f"{what}{goal} after {row.target_seconds:.2f} s, {row.target_speedup:.2f} times as soon as the baseline"
                f" = throughput gain {row.target_throughput_gain:.2f} x samples needed, baseline's over its own, "
                f"{row.target_samples_ratio:.2f}."
            )
    return lines


def advice(summary: Summary) -> list[str]:
    """The worst of each kind of doubt in full: what was seen, and what to do about it."""
    kinds: dict[str, list[str]] = {}
    for _, row in summary.table[summary.table.status == "ok"].iterrows():
        for text in _doubts(row):
            kinds.setdefault(re.sub(r"[\d.,]+", "#", text), []).append(text)
    return [max(texts, key=_badness) for texts in kinds.values()]


def _badness(doubt: str) -> float:
    number = re.search(r"\d+(\.\d+)?", doubt)
    size = float(number[0]) if number else 0.0
    return -size if doubt.startswith(TIMED_FOR_ONLY) else size


def _doubts(row: pd.Series) -> list[str]:
    """The warnings of a row that the brackets and the star don't say already."""
    return [text for text in row.warnings.split("; ") if text and not text.startswith((FEWER_UPDATES, OVERSUBSCRIBED))]


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


def _measured(row: pd.Series, name: str) -> str:
    return f"{row[f'{name}_speedup']:.2f}{_brackets(row[f'{name}_low'], row[f'{name}_high'])}"


def _brackets(low: float, high: float) -> str:
    return "" if math.isnan(low) else f" ({low:.2f} to {high:.2f})"


def _accuracy(own: float, baseline: float) -> str:
    return _percent(own) if math.isnan(baseline) else f"{_percent(own)} [{_percent(baseline)}]"


def _percent(fraction: float) -> str:
    return "-" if math.isnan(fraction) else f"{100 * fraction:.1f} %"
