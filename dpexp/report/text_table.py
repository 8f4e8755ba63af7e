"""The table for people, as text by column: the same in the terminal and on the page."""

import math

from dpexp.analysis.table import Summary
from dpexp.analysis.table_row import Row
from dpexp.errors import pluralize
from dpexp.report.sentences import percent

MAX_ROWS = 200  # more are in results.csv only
OVERALL = "°"  # marks overall speedups among undisturbed ones

FOOTNOTES = {
    "seconds": "seconds: time of one training (samples x time per sample, plus the time between epochs)",
    "speedup": "speedup: over one process with as many threads as a worker",
    "overall speedup": f"overall speedup: counts all time, like speedups with {OVERALL}; the others, and the seconds "
    "beside them, leave out disturbed steps",
    "over best sequential": "over best sequential: overall speedup over one process with its best number of threads",
    "accuracy": "accuracy: on the test split after a whole training; in square brackets, that of one process",
}


def columns_of(summary: Summary) -> tuple[str, dict[str, tuple[str, ...]]]:
    """Return what all successful rows have in common, in words, and the other columns by head."""
    shown = summary.measured[:MAX_ROWS]
    rows = [text_cells(row) for row in shown]
    columns = {head: tuple(row[head] for row in rows) for head in (rows[0] if rows else ())}
    common = [head for head in ("configuration", "batch") if len(set(columns.get(head, ()))) == 1]
    text = "; ".join(f"{head}: {columns.pop(head)[0]}" for head in common)
    for head in ("over best sequential", "accuracy"):
        if set(columns.get(head, ())) == {"-"}:
            columns.pop(head)
    is_overall = [row.speedup == row.overall_speedup or not row.speedup.is_known for row in shown]
    if all(is_overall):
        columns.pop("overall speedup", None)
    else:
        cells = zip(columns["speedup"], is_overall, strict=True)
        columns["speedup"] = tuple(f"{cell}{OVERALL if overall and cell != '-' else ''}" for cell, overall in cells)
    return text, columns


def footnotes(summary: Summary, heads: list[str]) -> list[str]:
    """Return the meaning of the shown columns."""
    oversubscribed = any(row.oversubscribed for row in summary.measured)
    notes = [f"* more threads than the {summary.usable_cores} usable cores"] if oversubscribed else []
    notes += [note for head, note in FOOTNOTES.items() if head in heads]
    if all(row.is_script for row in summary.measured):
        notes = [note.replace(FOOTNOTES["seconds"], "seconds: time of data.size samples") for note in notes]
    threads = {(row.threads_per_worker, row.baseline_threads) for row in summary.measured if row.baseline_threads}
    if other := [
        f"{pluralize(baseline, 'thread')} (a worker has {threads_of_worker})"
        for threads_of_worker, baseline in sorted(threads)
        if threads_of_worker != baseline
    ]:
        notes = [note.replace("as many threads as a worker", " or ".join(other)) for note in notes]
    for arguments in {row.baseline_arguments for row in summary.measured} - {""}:
        notes = [note.replace("one process with", f"one process with {arguments} and") for note in notes]
    if (more := len(summary.measured) - MAX_ROWS) > 0:
        notes.append(f"{more:,} more rows are in results.csv")
    return [*notes, "intervals: 95 %"] if heads else []


def text_cells(row: Row) -> dict[str, str]:
    """Return one successful row of the table as text, by head; what was not measured is a dash."""
    batch = f"{row.local_batch_size} each" if row.batch_scope == "per_worker" else f"{row.global_batch_size} in total"
    accuracy = percent(row.test_accuracy)
    if not math.isnan(row.baseline_test_accuracy):
        accuracy += f" [{percent(row.baseline_test_accuracy)}]"
    if math.isnan(row.test_accuracy):
        accuracy = "-" if row.is_script else "not trained"
    return {
        "configuration": row.series or ", ".join(dict.fromkeys([f"{row.strategy}", f"{row.model}", f"{row.data}"])),
        "workers": f"{row.workers}{'*' if row.oversubscribed else ''}",
        "samples": f"{row.data_size:,}",
        "batch": batch,
        "updates": f"{row.updates:,} [{row.baseline_updates:,}]",
        "seconds": f"{row.seconds.value:.3f}",
        "samples/s": f"{row.samples_per_second:,.0f}",
        "speedup": row.speedup.text(".2f", to="-"),
        "overall speedup": row.overall_speedup.text(".2f", to="-"),
        "over best sequential": row.overall_best_sequential_speedup.text(".2f", to="-"),
        "efficiency": f"{100 * row.efficiency.value:.0f} %" if row.efficiency.is_known else "-",
        "accuracy": accuracy,
    }
