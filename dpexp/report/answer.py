"""The report in sentences: the answer with one number, its certainty, a projection, and the details."""

import math
from collections.abc import Sequence
from dataclasses import replace

from dpexp.analysis.decision.choice import SURE_PROBABILITY, Choice, choose
from dpexp.analysis.decision.projection import project_further
from dpexp.analysis.estimate import Estimate
from dpexp.analysis.table import Summary
from dpexp.analysis.table_row import Row, at_largest_data_size, at_largest_data_size_by_series
from dpexp.analysis.warnings import BATCH
from dpexp.errors import pluralize
from dpexp.machine.memory import format_bytes
from dpexp.report import sentences
from dpexp.report.sentences import format_ratio, series_prefix, workers_of

MAX_LINES = 20  # per section


def sections(summary: Summary) -> dict[str, list[str]]:
    """Return all sentences by section, at most MAX_LINES of each."""
    by_section = {
        "answer": answer(summary),
        "details": [*details(summary), *sentences.targets(summary)],
        "reasons": sentences.reasons(summary),
        "warnings": sentences.warning_lines(summary),
        "failures": sentences.failures(summary),
    }
    for lines in by_section.values():
        if len(lines) > MAX_LINES:
            lines[MAX_LINES:] = [f"... and {len(lines) - MAX_LINES:,} more: see results.csv"]
    return by_section


def answer(summary: Summary) -> list[str]:
    """Return the headline (what to do, with the overall speedup), then what it costs and what would help."""
    decided = _comparable_rows(summary)
    choice = choose(decided)
    rows = at_largest_data_size_by_series(row for row in decided or summary.measured if row.overall_speedup.is_known)
    if not rows:
        alone = at_largest_data_size(summary.measured)[:1]
        lines = [f"{workers_of(row)}: {row.seconds:.3g} seconds for {row.data_size:,} samples" for row in alone]
        return [*lines, *(line for row in alone for line in sentences.shared_memory_gain(row))]
    if wrong := [warning for row in rows for warning in row.warnings if warning.kind == BATCH]:
        return [f"No speedup is known: {wrong[0]}"]
    chosen = [row for row in rows if not row.oversubscribed] or rows  # as `choose` prefers them
    row = choice.row if choice and choice.row else max(chosen, key=lambda row: _over_best(row).value)
    overall = _over_best(row)
    over_best = row.overall_best_sequential_speedup.is_known
    over = "the best single process" if over_best else "one process"
    if row.data_scope == "per_worker":
        over = f"the throughput of {over}"
    if row.baseline_arguments:
        over += f" with {row.baseline_arguments}"
    lines = [_headline(row, choice, overall, over), *_ranking(decided, choice, over)]
    lines += _accuracy(row)
    loss, where, advice = sentences.largest_loss(row)
    undisturbed = row.best_sequential_speedup if over_best else row.speedup
    if (disturbed := 1 - overall.value / undisturbed.value) > max(loss, sentences.MIN_LOSS):
        loss, where, advice = disturbed, "other programs or virtual machines", "stop them, or measure at another time"
    if loss and not row.oversubscribed:
        lines.append(f"Largest loss of time: {100 * loss:.0f} % to {where}; {advice}.")
    return [*lines, *sentences.shared_memory_gain(row)]


def _over_best(row: Row) -> Estimate:
    """Return the overall speedup over the best sequential process if it was measured, else over the baseline."""
    best = row.overall_best_sequential_speedup
    return best if best.is_known else row.overall_speedup


def _headline(row: Row, choice: Choice | None, number: Estimate, over: str) -> str:
    if number.low <= 1 <= number.high:
        name = row.option if choice else f"{series_prefix(row)}{workers_of(row)}"
        return f"No clear gain: {name} {'reaches' if row.workers == 1 else 'reach'} {format_ratio(number)} {over}"
    if choice is None:
        return f"Largest speedup: {series_prefix(row)}{workers_of(row)}, {format_ratio(number)} {over}"
    if choice.row is None:
        return f"Use {choice.name} ({row.option}: {format_ratio(number)} its speed)"
    return f"Use {choice.name}: {format_ratio(number)} {over}"


def _ranking(decided: Sequence[Row], choice: Choice | None, over: str) -> list[str]:
    """Return the speedups of compared series, the fastest first, and whether the first is surely the fastest."""
    if choice is None or len({row.series for row in decided}) == 1:
        return []
    known = sorted((row for row in decided if row.overall_speedup.is_known), key=lambda row: -row.overall_speedup.value)
    numbers = "; ".join(f"{row.option}, {format_ratio(row.overall_speedup)}" for row in known)
    unsure = f" The probability that {choice.name} is the fastest is only {100 * choice.probability:.0f} %."
    return [f"Compared with {over}: {numbers}.{unsure if choice.probability < SURE_PROBABILITY else ''}"]


def _accuracy(row: Row) -> list[str]:
    if row.is_script:
        if row.updates == row.baseline_updates:
            return []
        counts = f"{row.updates:,} updates, with one process {row.baseline_updates:,}"
        return [
            f"With {workers_of(row)}, {row.data_size:,} samples are {counts}; what a script learns is not measured."
        ]
    if math.isnan(row.test_accuracy):
        return ["Accuracy: not measured; set measurement.whole_trainings=always to measure it."]
    text = f"{sentences.percent(row.test_accuracy)} after {row.updates:,} updates"
    if math.isnan(row.baseline_test_accuracy):
        return [f"Test accuracy: {text}."]
    points = 100 * (row.test_accuracy - row.baseline_test_accuracy)
    change = f"{abs(points):.1f} points {'lower' if points < 0 else 'higher'} than"
    if abs(points) < 0.05:
        change = "the same as"
    other = f"{sentences.percent(row.baseline_test_accuracy)} after {row.baseline_updates:,}"
    return [f"With {workers_of(row)}, test accuracy is {change} in one process: {text}, against {other}."]


def _memory(rows: Sequence[Row]) -> list[str]:
    """Say how much memory the most workers need."""
    largest = max(rows, key=lambda row: row.workers or 1)
    if largest.memory_bytes is None or largest.baseline_memory_bytes is None:
        return []
    need, alone = "need" if largest.workers != 1 else "needs", format_bytes(largest.baseline_memory_bytes)
    return [f"{workers_of(largest)} {need} {format_bytes(largest.memory_bytes)} of memory, one process {alone}."]


def details(summary: Summary) -> list[str]:
    """Say how certain the choice among comparable rows is, and how fast more workers would be."""
    rows = _comparable_rows(summary)
    if not rows:
        return []
    lines = []
    if (choice := choose(rows)) is not None:
        samples = pluralize(rows[0].configured_size or 0, "sample")
        each = " per worker" if rows[0].data_scope == "per_worker" else ""
        lines.append(f"Fastest for {samples}{each}, with all time counted: {choice}.")
    if len({row.series for row in rows}) == 1 and (projection := project_further(rows)) is not None:
        lines.append(f"Projected, not measured: {sentences.describe_projection(projection)}.")
    return [*lines, *_memory(rows)]


def _comparable_rows(summary: Summary) -> Sequence[Row]:
    """Return the rows to compare: at the largest data size, of one comparison key, with the same baseline; else []."""
    rows = at_largest_data_size(summary.measured)
    if len({row.comparison_key for row in summary.measured}) != 1 or all(row.is_self_comparison for row in rows):
        return []
    if len({row.series for row in rows}) == 1:
        return rows
    best = rows[0].best_sequential_threads
    if best is not None and all(row.best_sequential_threads == best for row in rows):
        return [
            replace(row, overall_speedup=row.overall_best_sequential_speedup, baseline_threads=best) for row in rows
        ]
    return rows if len({row.baseline_threads for row in rows}) == 1 else []
