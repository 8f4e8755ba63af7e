"""The answer in sentences: the same in the terminal and on the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby

from dpexp.analysis.intervals import Estimate
from dpexp.analysis.row import Row
from dpexp.analysis.table import Summary
from dpexp.decision.contest import Scaling
from dpexp.decision.verdict import Verdict, verdict
from dpexp.phases import PHASES, USEFUL
from dpexp.results.schema import Warning
from dpexp.words import counted

MARKED = ("oversubscribed", "fewer updates")  # kinds of warnings that the table shows by a star and by brackets

LOSSES = {
    "load_balance": "waiting for the slowest worker of each step; look for what else runs on these cores",
    "communication_efficiency": "exchanging gradients; with larger batches they are exchanged less often",
    "computation_scaling": "the computation itself: it takes more time in every worker than in a single process, "
    "because workers share cores, caches and memory",
}


def first(lines: list[str], most: int = 20) -> list[str]:
    """The first lines, and how many more there are."""
    more = [f"... and {len(lines) - most:,} more like these: results.csv has all"] if len(lines) > most else []
    return [*lines[:most], *more]


def answers(summary: Summary) -> list[str]:
    """The best speedup at the most samples, and what it costs in accuracy; of several series, a line for each."""
    best = [
        max(rows, key=lambda row: row.speedup.value)
        for rows in _largest_of_each_series(row for row in summary.good if row.speedup.known)
    ]
    if len(best) == 1:
        found = verdict(summary)
        choice = found.choice if found else None
        fastest = [f"Fastest for {best[0].data_size:,} samples: {choice}."] if choice else []
        return [*fastest, _answer(best[0]), *_outlook(found, best[0])]
    return [
        f"{row.series}: {_workers(row)}, {_times(row.speedup)} as fast as one sequential process, efficiency "
        f"{100 * row.efficiency.value:.0f} %{_accuracies(row)}"
        for row in sorted(best, key=lambda row: -row.speedup.value)
    ]


def _outlook(found: Verdict | None, best: Row) -> list[str]:
    """Whether more workers would help: by the law of scaling where there is one, else a projection."""
    if found is None:
        return []
    if isinstance(found.scaling, Scaling):
        return [_law(found.scaling)]
    projection = found.projection
    if projection is None:
        return [f"More workers: nothing is projected; {found.scaling}."]
    cores = counted(projection.workers * (best.threads_per_worker or 1), "core")
    return [
        f"More workers (projected, not measured): {projection.workers} workers, on a machine with {cores} like these, "
        f"would train {projection.speedup.low:.1f} to {projection.speedup.high:.1f} times as fast as one sequential "
        f"process. The largest loss would be {projection.bottleneck}. {found.scaling[0].upper()}{found.scaling[1:]}."
    ]


def _law(scaling: Scaling) -> str:
    """What the chosen law says of twice the workers, and how well it predicts counts that it has not seen."""
    workers = 2 * scaling.most_workers
    middle, low, high = scaling.curve([workers])[:, 0]
    error = 100 * scaling.held_out_errors[scaling.law.name]
    parameters = ", ".join(
        f"{name.replace('_', ' ')} {value:.3g} ({least:.3g} to {most:.3g})"
        for name, (value, least, most) in scaling.intervals().items()
    )
    others = len(scaling.laws) - 1
    alike = (
        f" The measurements allow {counted(others, 'other law')}, too, which the interval includes." if others else ""
    )
    return (
        f"More workers (by a law of scaling, not measured): {workers} workers would train {middle:.2f} times "
        f"({low:.2f} to {high:.2f}) as fast as one process. The law is {scaling.law.name} ({parameters}); fitted to "
        f"all worker counts but one, it misses that one by {error:.1f} % (root mean square).{alike}"
    )


def _accuracies(row: Row) -> str:
    if math.isnan(row.test_accuracy):
        return ""
    return f", test accuracy {percent(row.test_accuracy)} [{percent(row.baseline_test_accuracy)}]"


def _answer(best: Row) -> str:
    if best.data_scope == "per_worker":
        what = (
            f"{_workers(best)} with {best.configured_size:,} samples each have {_times(best.speedup)} the throughput "
            "of one sequential process with its share"
        )
    else:
        what = f"{_workers(best)} train {_times(best.speedup)} as fast as one sequential process"
    what += f" with {_threads(best.threads_per_worker)}"
    if best.best_sequential_speedup.known:
        what += (
            f", and {_times(best.best_sequential_speedup)} as fast as the best sequential process, "
            f"with {_threads(best.best_sequential_threads)}"
        )
    what += f" ({best.data_size:,} samples). Efficiency {100 * best.efficiency.value:.0f} %."
    if math.isnan(best.test_accuracy):
        return what
    points = 100 * (best.test_accuracy - best.baseline_test_accuracy)
    change = f"{abs(points):.1f} points {'lower' if points < 0 else 'higher'}" if abs(points) >= 0.05 else "the same"
    return (
        f"{what} Test accuracy is {change}: {percent(best.test_accuracy)} after {best.updates:,} updates, against "
        f"{percent(best.baseline_test_accuracy)} after {best.baseline_updates:,}."
    )


def reasons(summary: Summary) -> list[str]:
    """For each series and worker count, at the most samples: the factors of efficiency, and the largest loss."""
    lines = []
    explained = (row for row in summary.good if not math.isnan(row.tree.parallel_efficiency))
    for rows in _largest_of_each_series(explained):
        for row in rows:
            lines.append(f"{_factors(row, summary.usable_cores)} {_step(row)}")
            if row.independent_speedup.known:
                lines.append(
                    f"{_prefix(row)}{row.workers} workers: as independent processes, which exchange nothing, they "
                    f"reach {_shown(row.independent_speedup)} of an ideal {row.workers}; that is the limit of the "
                    f"machine. With the exchange they reach {_shown(row.speedup)}."
                )
    return lines


def _factors(row: Row, usable_cores: int | None) -> str:
    factors = {name: getattr(row.tree, name) for name in LOSSES if not math.isnan(getattr(row.tree, name))}
    if math.isnan(row.tree.load_balance):
        factors = {"parallel_efficiency": row.tree.parallel_efficiency, **factors}
    product = " x ".join(f"{name.replace('_', ' ')} {100 * value:.0f} %" for name, value in factors.items())
    worst = min(factors, key=lambda name: factors[name])
    lost = f" Most is lost in {LOSSES[worst]}." if factors[worst] < 0.97 and worst in LOSSES else ""
    cores = ""
    if row.oversubscribed:  # whatever the factors are, this is why
        cores = f" ({row.workers} workers on {usable_cores} cores)"
        lost = " Workers wait for each other to leave a core; use fewer."
    return f"{_prefix(row)}{row.workers} workers: {product}{cores}.{lost}"


def _step(row: Row) -> str:
    """Where the time of a step goes, of a worker and of the baseline."""
    worker = {name: getattr(row.phases, f"{name}_seconds") for name in PHASES}
    baseline = {name: getattr(row.phases, f"baseline_{name}_seconds") for name in USEFUL}
    text = f"A step takes {_shares(worker, row.seconds.value / (row.updates or 1))}"
    if all(math.isfinite(seconds) for seconds in baseline.values()):
        text += f"; in one process {_shares(baseline, row.baseline_seconds / (row.baseline_updates or 1))}"
    return f"{text}."


def _shares(phases: Mapping[str, float], seconds: float) -> str:
    known = {name: value for name, value in phases.items() if math.isfinite(value)}
    parts = (f"{name} {1e3 * seconds * value / sum(known.values()):.2g}" for name, value in known.items())
    return f"{1e3 * seconds:.3g} ms ({', '.join(parts)})"


def targets(summary: Summary) -> list[str]:
    """For each configuration with a target accuracy: how much sooner it is reached, and why."""
    lines = []
    for row in summary.good:
        target = row.target
        if row.workers == 1 or math.isnan(target.target_accuracy):
            continue
        what = f"{_prefix(row)}{row.workers} workers, {row.data_size:,} samples: "
        goal = f"{100 * target.target_accuracy:g} % accuracy"
        if math.isnan(target.target_seconds):
            lines.append(f"{what}the median seed did not reach {goal} in {row.epochs} epochs; increase epochs.")
        elif math.isnan(target.target_speedup):
            lines.append(f"{what}{goal} after {target.target_seconds:.2f} s; the baseline did not reach it.")
        else:
            lines.append(
                f"{what}{goal} after {target.target_seconds:.2f} s, {target.target_speedup:.2f} times as fast as the "
                f"baseline: {target.target_throughput_ratio:.2f} times its throughput x "
                f"{target.target_samples_ratio:.2f}, its samples over theirs."
            )
    return lines


def warnings(summary: Summary) -> list[str]:
    """Each kind of warning once, the most severe first: what was seen, in which row, and what to do about it."""
    kinds: dict[str, list[tuple[Warning, Row]]] = {}
    for row in summary.good:
        for warning in row.warnings:
            if warning.kind not in MARKED:
                kinds.setdefault(warning.kind, []).append((warning, row))
    worst = [(max(found, key=lambda pair: pair[0].severity), len(found)) for found in kinds.values()]
    worst.sort(key=lambda entry: -entry[0][0].severity)
    return [_located(warning, row, count, len(summary.good)) for (warning, row), count in worst]


def _located(warning: Warning, row: Row, count: int, rows: int) -> str:
    if rows == 1:
        return str(warning)
    which = f"{_workers(row)}, {row.data_size:,} samples"
    which = f"{row.series}, {which}" if row.series else which
    more = f" and {counted(count - 1, 'more row')}" if count > 1 else ""
    return f"{warning.text} ({which}{more}): {warning.advice}"


def failures(summary: Summary) -> list[str]:
    """A line for each job without a usable result: its status, what it was, and why."""
    lines = []
    for row in summary.rows:
        if row.status != "ok":
            known = row.workers is not None
            what = f" ({row.series or row.strategy}, {_workers(row)}, {row.data_size:,} samples)" if known else ""
            lines.append(f"{row.status}: {row.job}{what}: {row.problem}")
    return lines


def finding(summary: Summary, figure: str) -> str:
    """What a figure shows, in numbers, for those who can't see it: at the most samples of each series."""
    samples = figure.removeprefix("time_")
    rows = [row for row in summary.good if samples.isdecimal() and row.data_size == int(samples)]
    rows = rows or [row for largest in _largest_of_each_series(summary.good) for row in largest]
    parts = [f"{_prefix(row)}{_workers(row)}, {row.data_size:,} samples: {_quantity(row, figure)}" for row in rows]
    return "; ".join(first(parts, 12))


def _quantity(row: Row, figure: str) -> str:
    if figure.startswith("time"):
        return f"{row.seconds.value:.3g} s"
    if figure == "efficiency":
        return f"efficiency {100 * row.efficiency.value:.0f} %"
    if figure == "losses":
        tree = row.tree
        return (
            f"load balance {100 * tree.load_balance:.0f} %, communication efficiency "
            f"{100 * tree.communication_efficiency:.0f} %, computation scaling {100 * tree.computation_scaling:.0f} %"
        )
    if figure == "phases":
        return f"{row.phases.wait_seconds + row.phases.communicate_seconds:.3g} s waiting or communicating"
    return f"speedup {row.speedup.value:.2f}"


def percent(fraction: float) -> str:
    """A fraction with one decimal; a dash for NaN."""
    return "-" if math.isnan(fraction) else f"{100 * fraction:.1f} %"


def _largest_of_each_series(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Of each series the rows with several workers and the most samples."""
    for _, series in groupby((row for row in rows if row.workers != 1), key=lambda row: row.series):
        members = list(series)
        largest = max(row.configured_size or 0 for row in members)
        yield [row for row in members if row.configured_size == largest]


def _prefix(row: Row) -> str:
    return f"{row.series}: " if row.series else ""


def _workers(row: Row) -> str:
    return counted(row.workers or 0, "worker")


def _threads(count: int | None) -> str:
    return counted(count or 0, "thread")


def _times(estimate: Estimate) -> str:
    if math.isnan(estimate.low):
        return f"{estimate.value:.2f} times"
    return f"{estimate.value:.2f} times ({estimate.low:.2f} to {estimate.high:.2f})"


def _shown(estimate: Estimate) -> str:
    if math.isnan(estimate.low):
        return f"{estimate.value:.2f}"
    return f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})"
