"""The answer in sentences: the same in the terminal and on the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby

from dpexp.analysis.decision.choice import Choice
from dpexp.analysis.decision.contest import Scaling
from dpexp.analysis.decision.verdict import Verdict, at_most_samples, verdict
from dpexp.analysis.intervals import Estimate
from dpexp.analysis.row import Row
from dpexp.analysis.table import Summary
from dpexp.errors import counted
from dpexp.results.phases import PHASES, USEFUL
from dpexp.results.schema import Warning

MARKED = ("oversubscribed", "fewer updates")  # kinds of warnings that the table shows by a star and by brackets

LOSSES = {  # what takes the time, and what helps
    "load_balance": ("waiting for the slowest worker of each step", "look for what else runs on these cores"),
    "communication_efficiency": ("exchanging gradients", "larger batches exchange them less often"),
}
SLOWER = {  # the same of computation scaling, by the phase that takes more time than in one process
    "data": ("loading data, which takes longer in every worker", "give the data loaders cores of their own"),
    "compute": (
        "slower computation in every worker",
        "workers share cores, caches and memory; fewer threads or smaller batches may fit better",
    ),
    "update": ("updating parameters, which takes longer in every worker", "their memory is shared or out of cache"),
}
FACTORS = ("load_balance", "communication_efficiency", "computation_scaling")
LEAST_LOSS = 0.03  # that is named


def first(lines: list[str], most: int = 20) -> list[str]:
    """The first lines, and how many more there are."""
    more = [f"... and {len(lines) - most:,} more like these: results.csv has all"] if len(lines) > most else []
    return [*lines[:most], *more]


def answer(summary: Summary) -> list[str]:
    """The headline: what to do, with one number, as it is here; then what it costs, and what would help."""
    several = list(_largest_of_each_series(row for row in summary.good if row.overall_speedup.known))
    if not several:
        rows = at_most_samples(summary.good)
        return [f"{_workers(row)}: {_seconds(row)}" for row in rows[:1]]
    found = verdict(summary)
    choice = found.choice if found else None
    row = choice.row if choice else None
    if row is None:
        row = max((row for rows in several for row in rows), key=lambda row: row.overall_speedup.value)
    what = "the best single process" if row.overall_best_sequential_speedup.known else "one process"
    if row.data_scope == "per_worker":
        what = f"the throughput of {what}"
    number = _here(row)
    lines = [_headline(row, choice, number, what), *_costs(row)]
    if number.low <= 1 <= number.high:
        lines.append("The interval includes 1: neither is shown to be faster.")
    fastest = max((row for rows in several for row in rows), key=lambda row: _undisturbed(row).value)
    for one in dict.fromkeys((fastest, row)):
        if _undisturbed(one) != _here(one):
            share = 100 * one.disturbed_share
            lines.append(
                f"Undisturbed, {_workers(one)} would be {_times(_undisturbed(one))} {what}; here, others slowed down "
                f"{share:.0f} % of the steps."
            )
    return [*lines, *_help(row, found)]


def _here(row: Row) -> Estimate:
    """Over the best single process, where that is known, with all time counted."""
    best = row.overall_best_sequential_speedup
    return best if best.known else row.overall_speedup


def _undisturbed(row: Row) -> Estimate:
    """The same without what others slowed down."""
    return row.best_sequential_speedup if row.overall_best_sequential_speedup.known else row.speedup


def _headline(row: Row, choice: Choice | None, number: Estimate, what: str) -> str:
    if choice is None:
        return f"Largest speedup: {_prefix(row)}{_workers(row)}, {_times(number)} {what}"
    if choice.row is None:
        return f"Use {choice.name}: {_workers(row)} reach {_times(number)} its speed"
    return f"Use {choice.name}: {_times(number)} {what}"


def _costs(row: Row) -> list[str]:
    """The accuracy; only its author knows that of a script."""
    if row.data == "script":
        return []
    if math.isnan(row.test_accuracy):
        return ["Accuracy: not trained; set measurement.whole_trainings=always to know it."]
    text = f"{percent(row.test_accuracy)} after {row.updates:,} updates"
    if math.isnan(row.baseline_test_accuracy):
        return [f"Test accuracy: {text}."]
    points = 100 * (row.test_accuracy - row.baseline_test_accuracy)
    change = f"{abs(points):.1f} points {'lower' if points < 0 else 'higher'}" if abs(points) >= 0.05 else "the same"
    other = f"{percent(row.baseline_test_accuracy)} after {row.baseline_updates:,} in one process"
    return [f"Test accuracy is {change}: {text}, {other}."]


def _help(row: Row, found: Verdict | None) -> list[str]:
    """What would make these workers faster, else what more of them would bring."""
    factors = _factors(row)
    worst = min(factors, key=lambda name: factors[name], default=None)
    if worst in FACTORS and factors[worst] < 1 - LEAST_LOSS and not row.oversubscribed:
        what, advice = _loss(row, worst)
        return [f"Largest loss: {100 * (1 - factors[worst]):.0f} % in {what}; {advice}."]
    return _more_workers(found, row)


def _loss(row: Row, factor: str) -> tuple[str, str]:
    """What takes the time that this factor counts, and what helps."""
    if factor in LOSSES:
        return LOSSES[factor]
    times = (row.workers or 1) if row.data_scope == "per_worker" else 1  # the baseline's samples
    grown = {
        phase: getattr(row.phases, f"{phase}_seconds") - times * getattr(row.phases, f"baseline_{phase}_seconds")
        for phase in USEFUL
    }
    return SLOWER[max(grown, key=lambda phase: grown[phase])]


def details(summary: Summary) -> list[str]:
    """How sure the choice is, and what more workers would bring; of several series, a line for each."""
    found = verdict(summary)
    if found is not None:
        rows = at_most_samples(summary.good)
        sure = [f"Fastest for {rows[0].data_size:,} samples, as it is here: {found.choice}."] if found.choice else []
        said = answer(summary)
        return [*sure, *(line for line in _more_workers(found, rows[0]) if line not in said)]
    best = [
        max(rows, key=lambda row: row.overall_speedup.value)
        for rows in _largest_of_each_series(row for row in summary.good if row.overall_speedup.known)
    ]
    return [
        f"{_prefix(row)}{_workers(row)}, {_times(row.overall_speedup)} as fast as one process, "
        f"test accuracy {percent(row.test_accuracy)}"
        for row in sorted(best, key=lambda row: -row.overall_speedup.value)
        if len(best) > 1
    ]


def _more_workers(found: Verdict | None, row: Row) -> list[str]:
    """By the law of scaling where there is one, else by a projection."""
    if found is None:
        return []
    if found.scaling is not None:
        return [_law(found.scaling)]
    if found.projection is None:
        return []
    workers, speedup = found.projection.workers, found.projection.speedup
    cores = counted(workers * (row.threads_per_worker or 1), "core")
    return [
        f"Projected, not measured: {workers} workers on {cores} like these would be {speedup.low:.1f} to "
        f"{speedup.high:.1f} times as fast as one process; the largest loss would be {found.projection.bottleneck}."
    ]


def _law(scaling: Scaling) -> str:
    """What the chosen law says of twice the workers, and how well it predicts counts that it has not seen."""
    workers = 2 * scaling.most_workers
    middle, low, high = scaling.curve([workers])[:, 0]
    parameters = ", ".join(
        f"{name.replace('_', ' ')} {value:.3g} ({least:.3g} to {most:.3g})"
        for name, (value, least, most) in scaling.intervals().items()
    )
    error = 100 * scaling.held_out_errors[scaling.law.name]
    others = len(scaling.laws) - 1
    alike = f" The interval includes {counted(others, 'other law')} that the measurements allow." if others else ""
    return (
        f"By {scaling.law.name}, not measured: {workers} workers would be {middle:.2f} times ({low:.2f} to {high:.2f}) "
        f"as fast as one process. Parameters: {parameters}. A worker count left out of the fit is predicted to "
        f"{error:.1f} %.{alike}"
    )


def reasons(summary: Summary) -> list[str]:
    """For each series and worker count, at the most samples: the factors of efficiency, and the largest loss."""
    lines = []
    explained = (row for row in summary.good if _factors(row))
    for rows in _largest_of_each_series(explained):
        for row in rows:
            lines.append(f"{_product(row, summary.usable_cores)} {_step(row)}")
            if row.independent_speedup.known:
                lines.append(
                    f"{_prefix(row)}{row.workers} independent processes, which exchange nothing, are "
                    f"{_times(row.independent_speedup)} as fast as one: the limit of this machine."
                )
    return lines


def _factors(row: Row) -> dict[str, float]:
    """Those of efficiency that are known, by name."""
    names = list(FACTORS) if not math.isnan(row.tree.load_balance) else ["parallel_efficiency", "computation_scaling"]
    factors = {name: getattr(row.tree, name) for name in names}
    return {name: value for name, value in factors.items() if not math.isnan(value)}


def _product(row: Row, usable_cores: int | None) -> str:
    factors = _factors(row)
    product = " x ".join(f"{name.replace('_', ' ')} {100 * value:.0f} %" for name, value in factors.items())
    worst = min(factors, key=lambda name: factors[name])
    if row.oversubscribed:  # whatever the factors are, this is why
        return f"{_prefix(row)}{row.workers} workers on {usable_cores} cores take turns on a core: {product}."
    lost = f" Most is lost in {_loss(row, worst)[0]}." if worst in FACTORS and factors[worst] < 1 - LEAST_LOSS else ""
    return f"{_prefix(row)}{row.workers} workers: {product}.{lost}"


def _step(row: Row) -> str:
    """Where the time of a step goes, of a worker and of the baseline."""
    worker = {name: getattr(row.phases, f"{name}_seconds") for name in PHASES}
    baseline = {name: getattr(row.phases, f"baseline_{name}_seconds") for name in USEFUL}
    text = f"A step takes {_shares(worker, row.step_seconds)}"
    if all(math.isfinite(seconds) for seconds in baseline.values()):
        text += f"; in one process {_shares(baseline, row.baseline_step_seconds)}"
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
    return [_with_place(warning, row, count, len(summary.good)) for (warning, row), count in worst]


def _with_place(warning: Warning, row: Row, count: int, rows: int) -> str:
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


def _times(estimate: Estimate) -> str:
    if math.isnan(estimate.low):
        return f"{estimate.value:.2f} times"
    return f"{estimate.value:.2f} times ({estimate.low:.2f} to {estimate.high:.2f})"


def _seconds(row: Row) -> str:
    return f"{row.seconds.value:.3g} s ({row.seconds.low:.3g} to {row.seconds.high:.3g}) for {row.data_size:,} samples"
