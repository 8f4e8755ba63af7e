"""From the results below any folders to one table, a row a configuration."""

from __future__ import annotations

import contextlib
import functools
import gc
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from dpexp.analysis.efficiency import PhaseTimes, Tree, phase_times, tree
from dpexp.analysis.ratios import block_misfit, usual_misfit
from dpexp.analysis.row import INTEGERS, Row
from dpexp.analysis.side import Side
from dpexp.analysis.speedup import SingleWorkers, of_independent_copies, over_baseline, over_best_sequential
from dpexp.analysis.time_to_target import Reached, TimeToTarget, time_to_target
from dpexp.analysis.warnings import busy_threads, warnings
from dpexp.config.job import JobConfig
from dpexp.errors import ResultError
from dpexp.results import series
from dpexp.results.jobs import Job, Unreadable, read_jobs, refuse_mixed_machines
from dpexp.results.schema import BASELINE, CANDIDATE
from dpexp.results.series import Member


@dataclass(frozen=True, eq=False)  # so that what is derived from one can be cached
class Summary:
    """The rows, sorted, failed and missing jobs last; and what captions need to know of the machine."""

    rows: list[Row]
    machine: str | None  # None when no job succeeded
    usable_cores: int | None

    @functools.cached_property
    def table(self) -> pd.DataFrame:
        """The rows by the columns of `results.csv`."""
        columns = pd.DataFrame([row.columns() for row in self.rows])
        table: pd.DataFrame = columns.astype(dict.fromkeys(INTEGERS, "Int64"))
        return table

    @property
    def good(self) -> list[Row]:
        """The rows of configurations that were measured."""
        return [row for row in self.rows if row.status == "ok"]


def measured_rows(folder: Path) -> list[Row]:
    """The rows of configurations below `folder` that were measured. Raises ResultError, too, where none was."""
    summary = aggregate([folder])
    if not summary.good:
        first = summary.rows[0]
        raise ResultError(f"{folder} has no good result; {first.job}: {first.problem or first.status}")
    return summary.good


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """While many objects are made that all stay: collections would visit them again and again, in vain."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_no_garbage_collection()
def aggregate(folders: Sequence[Path]) -> Summary:
    """Read all jobs below `folders`. Raises ResultError when there is none, or machines are mixed."""
    jobs, unreadable = read_jobs(folders)
    good = [Member(job) for job in jobs if job.result.status == "ok"]
    refuse_mixed_machines([member.job for member in good])
    failed = [Member(job) for job in jobs if job.result.status != "ok"]
    labels = series.labels([member.settings for member in good])
    all_labels = series.labels([member.settings for member in (*good, *failed)])

    singles = SingleWorkers.among(good)
    configurations: dict[str, list[Member]] = {}
    for member in good:
        configurations.setdefault(member.key, []).append(member)
    spreads = [block_misfit(member.job.result.kept(), BASELINE, CANDIDATE) for member in good]
    misfit = usual_misfit([spread for spread in spreads if spread is not None])
    rows = [_row(members, singles, labels[members[0].series_key], misfit) for members in configurations.values()]
    rows.sort(key=lambda row: (row.series, row.data_size, row.workers, row.job))
    rows += sorted(
        (_failed_row(member.job, all_labels[member.series_key]) for member in failed), key=lambda row: row.job
    )
    rows += sorted((_unreadable_row(job) for job in unreadable), key=lambda row: row.job)
    environment = good[0].job.result.environment if good else None
    return Summary(
        rows,
        environment.machine if environment else None,
        environment.usable_cores if environment else None,
    )


def _row(members: list[Member], singles: SingleWorkers, label: str, misfit: float) -> Row:
    """One configuration; the blocks of several jobs of it are pooled."""
    config, environment = members[0].config, members[0].job.result.environment
    blocks = [block for member in members for block in member.job.result.kept()]
    trainings = [one for member in members for one in member.job.result.trainings.get(CANDIDATE, [])]
    baseline = over_baseline(members, singles, misfit)
    best_sequential = over_best_sequential(members, misfit)
    found = baseline.comparison
    own = Side(config, found.blocks or blocks, CANDIDATE, found.limits[1], trainings, blocks)
    others: list[Side] = []
    if baseline.blocks:
        of_arm = baseline.blocks if baseline.arm == CANDIDATE else found.blocks
        others.append(
            Side(config.baseline(), of_arm, baseline.arm, found.limits[0], baseline.trainings, baseline.blocks)
        )
    samples = config.epochs * config.train_samples
    return Row(
        status="ok",
        **_settings(config) | {"threads_per_worker": blocks[0].arms[CANDIDATE].threads},
        repeats=len(blocks),
        seconds=own.seconds,
        overall_seconds=own.seconds_as_it_is.value,
        trained_seconds=_mean([training.seconds for training in trainings]),
        samples_per_second=samples / own.seconds.value,
        baseline_threads=baseline.blocks[0].arms[baseline.arm].threads if baseline.blocks else None,
        baseline=baseline.name,
        baseline_seconds=others[0].seconds.value if others else math.nan,
        baseline_overall_seconds=others[0].seconds_as_it_is.value if others else math.nan,
        baseline_trained_seconds=_mean([training.seconds for training in baseline.trainings]),
        speedup=found.shown,
        overall_speedup=found.here,
        disturbed_share=found.disturbed_share,
        efficiency=found.shown.scaled(1 / config.workers),
        best_sequential_threads=best_sequential.threads,
        best_sequential_seconds=best_sequential.seconds_per_sample * config.epochs * config.baseline().train_samples,
        best_sequential_speedup=best_sequential.comparison.shown,
        overall_best_sequential_speedup=best_sequential.comparison.here,
        independent_speedup=of_independent_copies(members),
        target=_time_to_target(config, own, others),
        tree=_tree(config, own, others),
        phases=_phase_times(own, others),
        train_loss=_mean([training.epoch_losses[-1] for training in trainings]),
        test_accuracy=_mean([training.test_accuracy for training in trainings]),
        baseline_test_accuracy=_mean([training.test_accuracy for training in baseline.trainings]),
        oversubscribed=busy_threads(config, environment) > environment.usable_cores,
        warnings=tuple(warnings(config, environment, blocks, found, [own, *others], baseline.name)),
        job=" + ".join(member.job.name for member in members),
        series=label,
        baseline_compute=others[0].compute_seconds if others else (),
    )


def _time_to_target(config: JobConfig, own: Side, others: Sequence[Side]) -> TimeToTarget:
    if config.target_accuracy is None or not others:
        return TimeToTarget()
    candidate, baseline = (
        Reached(side.trainings, side.config.train_samples, side.seconds.value / side.config.epochs)
        for side in (own, others[0])
    )
    return time_to_target(config.target_accuracy, candidate, baseline)


def _tree(config: JobConfig, own: Side, others: Sequence[Side]) -> Tree:
    """One process that plays several workers has no parallel efficiency."""
    workers = own.phases if len(own.phases) == config.workers else []
    baseline = others[0].phases if others else []
    ratio = own.samples_per_step / others[0].samples_per_step if others else math.nan
    return tree(own.step_seconds, workers, baseline, ratio)


def _phase_times(own: Side, others: Sequence[Side]) -> PhaseTimes:
    baseline, steps = (others[0].phases, others[0].steps) if others else ([], math.nan)
    return phase_times(own.blocks, own.arm, own.phases, own.steps, baseline, steps)


def _mean(values: Sequence[float | None]) -> float:
    """The mean of those that are known."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else math.nan


def _settings(config: JobConfig) -> dict[str, Any]:
    return {
        **config.names,
        "workers": config.workers,
        "threads_per_worker": config.threads_per_worker,
        "data_size": config.train_samples,
        "batch_scope": config.batch.scope,
        "local_batch_size": config.local_batch_size,
        "global_batch_size": config.global_batch_size,
        "epochs": config.epochs,
        "seed": config.seed,
        "updates": config.updates,
        "baseline_updates": config.baseline().updates,
        "configured_size": config.data.size,
    }


def _failed_row(job: Job, label: str) -> Row:
    """A job without a good result; its label says in what it differs from all others, good or not."""
    unfinished = f"interrupted after {len(job.result.kept())} of its blocks; resume it to finish"
    problem = job.result.error or unfinished
    return Row(status=job.result.status, **_settings(job.config), problem=problem, job=job.name, series=label)


def _unreadable_row(job: Unreadable) -> Row:
    return Row(status=job.status, problem=job.reason, job=job.name)
