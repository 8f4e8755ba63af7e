"""Project the speedup of more workers than were measured, on hosts like the measured one.

As in `python -m dpexp.project FOLDER --workers 8,64 --link 25Gbit/s,10us --workers-per-host 8`. With --efficiency or
--seconds, it solves for what is left out: the workers, the bandwidth (as in --link ,10us), or else the local batch.
"""

import argparse
import dataclasses
import functools
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from dpexp.analysis.decision.links import Link
from dpexp.analysis.decision.projection import Cluster, Projection, StepModel, line, measure_next, worst_error
from dpexp.analysis.intervals import Estimate
from dpexp.analysis.table import Summary, summarize_measured
from dpexp.analysis.table_row import Row, at_most_samples
from dpexp.config.groups import CustomModelConfig
from dpexp.config.script import ScriptConfig
from dpexp.errors import ConfigError, ResultError
from dpexp.report import terminal
from dpexp.report.command import Parser, command
from dpexp.report.sentences import describe_projection

MOST_WORKERS = 4096  # all up to this are tried: an efficiency may rise beside measured counts, and until a host is full
STEPS = [1.01**power for power in range(1390)]  # from one to a million: the Mbit/s and samples that are tried


@command
def main(arguments: list[str]) -> int:
    """Print a projection for each number of workers; return the exit status."""
    parser = Parser(prog="python -m dpexp.project", description=__doc__)
    parser.add_argument("folder", type=Path, help="results with workers=1 and at least one other worker count")
    parser.add_argument("--workers", type=_counts, metavar="8,64,512")
    goal = parser.add_mutually_exclusive_group()
    goal.add_argument("--efficiency", type=float, metavar="0..1", help="that is wanted, as in --efficiency 0.8")
    goal.add_argument("--seconds", type=float, metavar="S", help="wanted, of one training: for workers or bandwidth")
    parser.add_argument("--link", type=_link, metavar="25Gbit/s,10us", help="between hosts: bandwidth and latency")
    parser.add_argument("--workers-per-host", type=int, metavar="N", help="default: all on one host with as many cores")
    parser.add_argument("--gradient-mb", type=float, metavar="MB", help="default: that of the measured model")
    parser.add_argument("--overlap", type=float, default=0.0, metavar="0..1", help="exchange hidden by computation")
    parser.add_argument("--series", help="which series, if the folder has several; see results.csv")
    options = parser.parse_args(arguments)
    _check(options)
    measured = summarize_measured(options.folder)
    rows = _rows(measured.good, options.folder, options.series)
    cluster = Cluster()
    if options.link is not None:
        size = _gradient_bytes(rows[0], measured) if options.gradient_mb is None else options.gradient_mb * 1e6
        cluster = Cluster(options.workers_per_host, options.link, size, options.overlap)
    try:
        model = StepModel(rows)
        checked = model.check()
        if options.efficiency is None and options.seconds is None:
            projections = [model.project(workers, cluster, worst_error(checked)) for workers in options.workers]
            lines = [describe_projection(projection) for projection in projections]
            if cluster.link is not None:  # else on one host with more cores, of another price
                lines = [
                    f"{text}{_price(projection, rows[0])}" for text, projection in zip(lines, projections, strict=True)
                ]
            lines += [_tradeoff_sentence(projections)] if len(projections) > 1 else []
            lines += measure_next(model, projections[-1], cluster, measured.usable_cores or 1)
        else:
            lines = [_solve(options, model, cluster, measured.good, workers) for workers in options.workers or [0]]
    except ValueError as error:
        raise ResultError(f"can't project: {error}") from error
    terminal.show_line("projected, not measured:")
    for sentence in [*lines, _checked_sentence(model.counts, checked)]:
        terminal.show_line(sentence)
    return 0


def _solve(options: argparse.Namespace, model: StepModel, cluster: Cluster, rows: Sequence[Row], workers: int) -> str:
    """Solve for what is left out (0 workers: the workers), in words. Raises ResultError if nothing tried is enough."""
    first, efficiency = model.first, options.efficiency
    goal = f"an efficiency of {100 * efficiency:g} %" if efficiency else f"a training in {options.seconds:g} s"
    project = functools.partial(model.project, error=worst_error(model.check()))
    projections: dict[float, Projection] = {}  # by what is tried: the first that is enough is the answer
    none, digits, problem = math.inf, ",.0f", "none is enough"

    def needed(count: int) -> float:  # speedup
        more = count if first.data_scope == "per_worker" else 1  # samples than one process
        return float(efficiency * count if efficiency else more * first.baseline_seconds / options.seconds)

    if not workers:
        sought, none = ("most workers", 1) if efficiency else ("fewest workers", math.inf)
        counts = range(MOST_WORKERS, 1, -1) if efficiency else range(1, MOST_WORKERS + 1)
        projections |= {count: project(count, cluster) for count in counts}
    elif cluster.link and math.isinf(cluster.link.bytes_per_second):
        sought, digits = f"least Gbit/s at this latency with {workers:,} workers", ",.3g"
        for gbits in (step / 1e3 for step in STEPS):
            link = dataclasses.replace(cluster.link, bytes_per_second=gbits * 1e9 / 8)
            projections[gbits] = project(workers, dataclasses.replace(cluster, link=link))
        best = project(workers, dataclasses.replace(cluster, link=Link(math.inf, 0.0)))
        if project(workers, cluster).speedup.high < needed(workers) <= best.speedup.high:
            problem = "the latency alone is too much"
    elif first.batch_scope == "global":
        raise ResultError("batch.scope=global: to solve for the batch, measure with batch.scope=per_worker")
    else:
        work = _work_by_batch(rows, first)
        known, measured = " and ".join(map(str, sorted(work))), line(work, first.local_batch_size or 0)
        basis = f"on the line through {known}" if len(work) > 1 else f"proportional to it (only {known} is measured)"
        sought = f"smallest local batch with {workers:,} workers, if its work is {basis},"
        for batch in map(round, STEPS):
            projections[batch] = project(workers, cluster, work=line(work, batch) / measured)

    value, *ends = (
        next(
            (tried for tried, result in projections.items() if getattr(result.speedup, end) >= needed(result.workers)),
            none,
        )
        for end in ("value", "low", "high")
    )
    if {value, *ends} == {none}:
        best = max(projections.values(), key=lambda result: result.speedup.value / needed(result.workers))
        raise ResultError(f"{sought} for {goal}: {problem}; at best, {describe_projection(best)}")
    is_limit = MOST_WORKERS in (value, *ends) and not workers and efficiency
    edge = f"; more than {MOST_WORKERS:,} were not tried" if is_limit else ""
    return f"{sought} for {goal}: {Estimate(value, min(ends), max(ends)):{digits}}{edge}".replace("inf", "none")


def _price(projection: Projection, first: Row) -> str:
    """Return the text for the price of a training on so many hosts, if the price of one is known."""
    samples = projection.workers if first.data_scope == "per_worker" else 1  # over the baseline's
    undivided, speedup = projection.hosts * samples * first.baseline_price, projection.speedup
    price = Estimate(undivided / speedup.value, undivided / speedup.high, undivided / speedup.low)
    return f"; projected price of a training: {price:.3g}" if price.is_known else ""


def _work_by_batch(rows: Sequence[Row], first: Row) -> Mapping[float, float]:
    """Return the seconds of a step of one process, by batch, of rows that differ from the first only in the batch."""

    def rest(row: Row) -> tuple[object, ...]:
        return re.sub(r"batch\.size=\d+", "", row.series), row.workers, row.configured_size

    return {row.local_batch_size or 0: row.baseline_step_seconds for row in rows if rest(row) == rest(first)}


def _tradeoff_sentence(projections: Sequence[Projection]) -> str:
    """Say from where on another worker costs more than it gains (Eager et al. 1989)."""
    best = max(projections, key=lambda projection: projection.speedup.value * projection.efficiency.value)
    edge = " or beyond" if best is projections[-1] else " or below" if best is projections[0] else ""
    return (
        f"speedup x efficiency is highest at {best.workers:,} workers{edge}, among the given worker counts: beyond "
        "that, another worker costs more than it gains"
    )


def _checked_sentence(counts: Sequence[int], checked: Mapping[int, tuple[float, float]]) -> str:
    if not checked:
        return (
            f"not checked: the measured worker counts ({', '.join(map(str, counts))}) can't be projected from "
            "smaller ones"
        )
    parts = [
        f"{workers} workers were projected to {expected:.2f}, measured {measured:.2f}"
        for workers, (expected, measured) in checked.items()
    ]
    return f"checked, from smaller counts only: {'; '.join(parts)}; the intervals allow for the largest error"


def _counts(text: str) -> list[int]:
    counts = sorted({int(part) for part in text.split(",")}) if re.fullmatch(r"\d+(,\d+)*", text) else [0]
    if counts[0] < 2:
        raise argparse.ArgumentTypeError(f"{text}: write worker counts of at least 2, such as 8,64,512")
    return counts


def _link(text: str) -> Link:
    try:
        return Link.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _check(options: argparse.Namespace) -> None:
    """Raise ConfigError for options that contradict each other, or are out of range."""
    is_open = options.link is not None and math.isinf(options.link.bytes_per_second)
    left_out = ["--workers"] * (options.workers is None) + ["the bandwidth"] * is_open
    goals = {"--efficiency": options.efficiency, "--seconds": options.seconds}
    goal = next((name for name, value in goals.items() if value is not None), None)
    if goal is None and left_out:
        raise ConfigError(f"give {' and '.join(left_out)}; or --efficiency or --seconds, to solve for it")
    if len(left_out) > 1 or (goal == "--seconds" and not left_out):
        raise ConfigError(
            f"{goal}: leave out {'exactly' if goal == '--seconds' else 'at most'} one of --workers and the bandwidth "
            "(--link ,10us), to solve for it; --efficiency with nothing left out solves for the local batch"
        )
    if options.efficiency is not None and not 0 < options.efficiency <= 1:
        raise ConfigError(f"--efficiency {options.efficiency:g}: it must be a share above 0, of at most 1")
    if (options.link is None) != (options.workers_per_host is None):
        raise ConfigError("--link and --workers-per-host belong together: give both, or none for a single host")
    if options.workers_per_host is not None and options.workers_per_host < 1:
        raise ConfigError(f"--workers-per-host {options.workers_per_host}: it must be at least 1")
    if not 0 <= options.overlap <= 1:
        raise ConfigError(f"--overlap {options.overlap}: it must be a share between 0 and 1")
    if is_open and (options.overlap == 1 or options.workers[0] <= options.workers_per_host):
        raise ConfigError("--link without a bandwidth: it needs workers on several hosts, and an --overlap below 1")
    for name, value in (("--seconds", options.seconds), ("--gradient-mb", options.gradient_mb)):
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"{name} {value:g}: it must be above 0")
    if options.link is None and (options.overlap or options.gradient_mb is not None):
        raise ConfigError("--overlap and --gradient-mb describe the exchange between hosts: give --link, too")


def _rows(rows: Sequence[Row], folder: Path, series: str | None) -> list[Row]:
    """Return the rows of one series at its most samples. Raises ResultError."""
    labels = sorted({row.series for row in rows})
    if series is None and len(labels) > 1:
        raise ResultError(f"{folder} has {len(labels)} series; choose one with --series: {'; '.join(labels)}")
    if series is not None and series not in labels:
        choices = "; ".join(label for label in labels if label) or "none: the folder has a single series"
        raise ResultError(f"--series {series}: choose from {choices}")
    return at_most_samples([row for row in rows if series in (None, row.series)])


def _gradient_bytes(row: Row, measured: Summary) -> float:
    """Return the size of the gradient of these jobs' model. Raises ConfigError if only the user's code knows it."""
    from dpexp.train.data.dataset import load  # imports torch
    from dpexp.train.models.architectures import build

    config = next(job.config for job in measured.jobs if job.name in row.jobs)
    if isinstance(config, ScriptConfig) or isinstance(config.model, CustomModelConfig):
        raise ConfigError(f"model={config.names['model']} has an unknown gradient size: give it as --gradient-mb")
    dataset = load(config)
    model = build(config.model, dataset.input_shape, dataset.classes)
    size = 8 if config.dtype == "float64" else 4
    return float(size * sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad))


if __name__ == "__main__":
    sys.exit(main())
