"""The reasons, warnings and failures in sentences, and phrases that all sentences share."""

import math
from collections.abc import Mapping

from dpexp.analysis.decision.projection import Projection
from dpexp.analysis.efficiency import FACTORS
from dpexp.analysis.estimate import Estimate
from dpexp.analysis.table import Summary
from dpexp.analysis.table_row import Row, at_largest_data_size_by_series
from dpexp.analysis.warnings import MeasurementWarning
from dpexp.errors import format_number, pluralize
from dpexp.phases import USEFUL

MIN_LOSS = 0.03  # smaller losses are not reported
MAX_SCALING = 1.2  # computation scaling above which a script's phases are not plausible
LOSS_CAUSES = {  # by factor of efficiency: what time is lost to, and a reason or advice
    # Where waiting is not separated from exchanging:
    "parallel_efficiency": ("exchanging gradients, or waiting", "larger batches exchange gradients less often"),
    "load_balance": ("waiting for the slowest worker in each step", "check what else runs on these cores"),
    "communication_efficiency": ("exchanging gradients", "larger batches exchange gradients less often"),
    "script": ("exchanging gradients", "measurement.shared_memory=always measures how much shared memory helps"),
    # For computation scaling, by the phase that takes more time than in one process:
    "data": ("loading data, which takes longer in every worker", "give the data loaders their own cores"),
    "compute": ("slower computation in every worker", "workers share cores, caches and memory bandwidth"),
    "update": (
        "updating parameters, which takes longer in every worker",
        "workers share caches and memory bandwidth; larger batches update parameters less often",
    ),
}
SLOW_PHASES = {  # by phase: what a slow worker takes longer to do, and advice; "samples": if it differs between steps
    "data": ("load data", "look at its loader, and at what it does between steps"),
    "compute": ("compute", "give it less work, or check what else runs on its core"),
    "update": ("update", "check what only this worker does during the update"),
    "samples": ("", "samples need different amounts of work: put similar ones into the same batch"),
}


def reasons(summary: Summary) -> list[str]:
    """Return factors of efficiency and the largest loss, for each series and worker count at the largest data size."""
    lines = []
    for row in at_largest_data_size_by_series([row for row in summary.measured if _factors(row)]):
        product = " x ".join(f"{name.replace('_', ' ')} {100 * value:.0f} %" for name, value in _factors(row).items())
        _, loss, _ = largest_loss(row)
        subject, lost = f"{series_prefix(row)}{workers_of(row)}", f" Largest loss of time: {loss}." if loss else ""
        if row.oversubscribed:  # the main cause, whatever the factors are
            subject, lost = f"{subject}, with more threads than the {summary.usable_cores} usable cores", ""
        if row.slow_phase and _slow_worker(row) not in lost:
            lost += f" The others wait for {_slow_worker(row)}."
        lines.append(f"{subject}: {product}.{lost} {_step(row)}")
    return lines


def largest_loss(row: Row) -> tuple[float, str, str]:
    """Return the largest lost share of the time, its cause, and advice; 0 if none is known, or it is small."""
    factors = _factors(row)
    worst = min(factors, key=lambda name: factors[name], default="")
    loss = 1 - factors.get(worst, 1.0)
    if row.slow_loss > MIN_LOSS and (row.slow_loss >= loss or worst == "parallel_efficiency"):  # which includes it
        return row.slow_loss, f"waiting for {_slow_worker(row)}", SLOW_PHASES[row.slow_phase][1]
    if row.is_script and factors.get("computation_scaling", 1.0) > MAX_SCALING:
        return 0.0, "", ""  # the compute phase contains something else, too
    if worst == "computation_scaling":
        more = (row.workers or 1) if row.data_scope == "per_worker" else 1  # times the baseline's samples
        worst = max(USEFUL, key=lambda phase: row.phases[phase] - more * row.baseline_phases[phase])
    may_share_memory = row.is_script and not row.exchange and not row.shared_memory_speedup.is_known
    if worst == "communication_efficiency" and may_share_memory:
        worst = "script"
    if loss <= MIN_LOSS or worst not in LOSS_CAUSES:
        return 0.0, "", ""
    if worst == "load_balance" and row.slow_phase and row.slow_rank is None:
        return loss, f"waiting for {_slow_worker(row)}", SLOW_PHASES["samples"][1]
    return loss, *LOSS_CAUSES[worst]


def shared_memory_gain(row: Row) -> list[str]:
    """Return how much gradients in shared memory help, if measured."""
    gain = row.shared_memory_speedup
    if not gain.is_known:
        return []
    line = f"With gradients exchanged in shared memory instead of over gloo, training is {format_ratio(gain)} as fast"
    if gain.low > 1:
        in_script = "exchange.use_shared_memory(model) (see docs/exchange.md)"
        line += f" (measured): use {in_script if row.is_script else 'strategy.exchange=shared_memory'}"
    elif gain.high >= 1:
        line += " (no clear gain)"
    return [f"{line}."]


def _slow_worker(row: Row) -> str:
    """Return whom the others wait for, and why."""
    longer = f"takes {format_number(1e3 * row.slow_seconds, 2)} ms longer to {SLOW_PHASES[row.slow_phase][0]}"
    if row.slow_rank is None:
        return f"a different worker in each step, which {longer}"
    where = f" on {row.slow_host}" if row.slow_host else ""
    return f"rank {row.slow_rank}{where}, which {longer} in {100 * row.slow_share:.0f} % of the steps"


def _factors(row: Row) -> dict[str, float]:
    """Return the known factors of efficiency, by name."""
    factors = {name: value for name in FACTORS if not math.isnan(value := getattr(row, name))}
    if "load_balance" in factors:
        del factors["parallel_efficiency"]  # a product of others
    return factors


def _step(row: Row) -> str:
    """Return the time of a step by phase, for a worker and for the baseline."""
    text = f"A step takes {_phase_times(row.phases, row.step_seconds)}"
    if row.baseline_phases:
        text += f"; in one process {_phase_times(row.baseline_phases, row.baseline_step_seconds)}"
    return f"{text}."


def _phase_times(phases: Mapping[str, float], seconds: float) -> str:
    parts = (
        f"{name} {format_number(1e3 * seconds * value / sum(phases.values()), 2)}" for name, value in phases.items()
    )
    return f"{format_number(1e3 * seconds)} ms ({', '.join(parts)})"


def describe_projection(projection: Projection) -> str:
    """Return a projection in words."""
    hosts = f" on {projection.hosts} hosts" if projection.hosts > 1 else " on one host"
    lost = projection.parts[projection.bottleneck] / projection.step_seconds
    milliseconds = format_number(1e3 * projection.step_seconds)
    return (
        f"{pluralize(projection.workers, 'worker')}{hosts}: {projection.speedup:.3g} times as fast as one process, "
        f"efficiency {100 * projection.speedup.value / projection.workers:.0f} %; "
        f"a step takes {milliseconds} ms, {100 * lost:.0f} % of it due to {projection.bottleneck}"
    )


def targets(summary: Summary) -> list[str]:
    """Return how much faster a target accuracy is reached, and why, for each configuration that has one."""
    lines = []
    for row in summary.measured:
        if row.workers == 1 or math.isnan(row.target_accuracy):
            continue
        goal = f"{100 * row.target_accuracy:g} % accuracy"
        text = f"{goal} after {row.target_seconds:.2f} s"
        if math.isnan(row.target_seconds):
            text = f"the median seed did not reach {goal} in {row.epochs} epochs; increase epochs"
        elif math.isnan(row.target_speedup):
            text += "; the baseline did not reach it"
        else:
            text += (
                f", {row.target_speedup:.2f} times as fast as the baseline: {row.target_throughput_ratio:.2f} "
                f"(its throughput / the baseline's) x {row.target_samples_ratio:.2f} (the baseline's samples / its own)"
            )
        lines.append(f"{series_prefix(row)}{row.workers} workers, {row.data_size:,} samples: {text}.")
    return lines


def warning_lines(summary: Summary) -> list[str]:
    """Return each kind of warning once, the most severe first: the problem, its row, and advice."""
    kinds: dict[str, list[tuple[MeasurementWarning, Row]]] = {}
    for row in summary.measured:
        for warning in row.warnings:
            kinds.setdefault(warning.kind, []).append((warning, row))
    worst = [(*max(of_kind, key=lambda pair: pair[0].severity), len(of_kind)) for of_kind in kinds.values()]
    lines = []
    for warning, row, count in sorted(worst, key=lambda entry: -entry[0].severity):
        more = f" and {pluralize(count - 1, 'more row')}" if count > 1 else ""
        place = f" ({series_prefix(row)}{workers_of(row)}, {row.data_size:,} samples{more})"
        lines.append(f"{warning.text}{place if len(summary.measured) > 1 else ''}: {warning.advice}")
    return lines


def failures(summary: Summary) -> list[str]:
    """Return a line for each job without a usable result: its status, its settings, and the reason."""
    lines = []
    for row in summary.rows:
        if row.status != "ok":
            known = row.workers is not None
            job = f" ({row.series or row.strategy}, {workers_of(row)}, {row.data_size:,} samples)" if known else ""
            lines.append(f"{row.status}: {' + '.join(row.jobs)}{job}: {row.problem}")
    return lines


def series_prefix(row: Row) -> str:
    """Return the beginning of a row's sentence: its series, if there are several."""
    return f"{row.series}: " if row.series else ""


def workers_of(row: Row) -> str:
    """Return the number of workers, in words."""
    return pluralize(row.workers or 0, "worker")


def format_ratio(estimate: Estimate) -> str:
    """Return a ratio with its interval, if it has one."""
    return estimate.text(".2f", " times")


def percent(fraction: float) -> str:
    """Return a fraction as a percentage with one decimal."""
    return f"{100 * fraction:.1f} %"
