"""From the results below any folders to one table, a row a configuration."""

from __future__ import annotations

import contextlib
import functools
import gc
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from dpexp.analysis import series
from dpexp.analysis.efficiency import mean_tree, phase_times
from dpexp.analysis.row import INTEGERS, Row
from dpexp.analysis.series import Member
from dpexp.analysis.speedup import (
    SingleWorkers,
    kept_blocks,
    mean_seconds,
    of_independent_copies,
    over_baseline,
    over_best_sequential,
    paired_speedup,
    pairs_with_baseline,
)
from dpexp.analysis.time_to_target import time_to_target
from dpexp.analysis.undisturbed import disturbed_share, have_steps
from dpexp.analysis.warnings import busy_threads, warnings
from dpexp.config.experiment import ExperimentConfig
from dpexp.errors import ResultError
from dpexp.results.jobs import Job, Unreadable, read_jobs, refuse_mixed_machines
from dpexp.results.schema import Training


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
    rows = [_row(members, singles, labels[members[0].series_key]) for members in configurations.values()]
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


def _row(members: list[Member], singles: SingleWorkers, label: str) -> Row:
    """One configuration; the blocks of several jobs of it are pooled."""
    config, environment = members[0].config, members[0].job.result.environment
    blocks = kept_blocks(members)
    candidates = [block.candidate for block in blocks]
    by_steps = have_steps(candidates, [block.baseline for block in blocks if block.baseline is not None])
    time = mean_seconds(candidates, by_steps)
    baseline = over_baseline(members, singles)
    best_sequential = over_best_sequential(config, blocks)
    return Row(
        status="ok",
        **_settings(config),
        repeats=len(blocks),
        seconds=time,
        samples_per_second=config.epochs * config.train_samples / time.value,
        baseline=baseline.name,
        baseline_seconds=mean_seconds(baseline.trainings, by_steps).value,
        speedup=baseline.speedup,
        overall_speedup=paired_speedup(config, pairs_with_baseline(blocks), overall=True),
        disturbed_share=disturbed_share(candidates, by_steps),
        efficiency=baseline.speedup.scaled(1 / config.workers),
        best_sequential_threads=best_sequential.threads,
        best_sequential_seconds=best_sequential.seconds,
        best_sequential_speedup=best_sequential.speedup,
        independent_speedup=of_independent_copies(config, blocks),
        target=time_to_target(config, blocks),
        tree=mean_tree(config, blocks),
        phases=phase_times(blocks),
        train_loss=_mean([training.epoch_losses[-1] for training in candidates if training.epoch_losses]),
        test_accuracy=_test_accuracy(candidates),
        baseline_test_accuracy=_test_accuracy(baseline.trainings),
        oversubscribed=busy_threads(config, environment) > environment.usable_cores,
        warnings=tuple(warnings(config, environment, blocks, baseline.name)),
        job=" + ".join(member.job.name for member in members),
        series=label,
        baseline_steps=tuple(training.steps for training in baseline.trainings if training.steps is not None),
    )


def _mean(values: Sequence[float | None]) -> float:
    """The mean of those that are known: blocks that repeat the same updates are evaluated once."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else float("nan")


def _test_accuracy(trainings: Sequence[Training]) -> float:
    """The mean over blocks: with a target accuracy they differ in seed, and each was evaluated after each epoch."""
    return _mean([one.epoch_accuracies[-1] if one.epoch_accuracies else one.test_accuracy for one in trainings])


def _settings(config: ExperimentConfig) -> dict[str, Any]:
    return {
        "strategy": config.strategy.name,
        "workers": config.workers,
        "threads_per_worker": config.threads_per_worker,
        "model": config.model.name,
        "data": config.data.name,
        "data_size": config.train_samples,
        "data_scope": config.data.scope,
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
