"""From result files below any folders to one tidy table, a row a configuration."""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from dpexp import measures, series
from dpexp.baselines import SingleWorkers, baseline, kept_blocks
from dpexp.config import ExperimentConfig
from dpexp.doubts import busy_threads, doubts
from dpexp.recorded import Job, read_jobs, refuse_mixed_machines
from dpexp.results import Training
from dpexp.stats import geometric_mean

COLUMNS = """
status strategy workers threads_per_worker model data data_size data_scope batch_scope local_batch_size
global_batch_size epochs seed updates baseline_updates repeats seconds seconds_low seconds_high samples_per_second
baseline baseline_seconds speedup speedup_low speedup_high efficiency efficiency_low efficiency_high best_threads
best_seconds gain gain_low gain_high independent_speedup independent_low independent_high unsynchronized_speedup
unsynchronized_low unsynchronized_high target_accuracy target_seconds target_samples baseline_target_seconds
target_speedup target_throughput_gain target_samples_ratio parallel_efficiency load_balance
communication_efficiency computation_scaling data_seconds compute_seconds wait_seconds communicate_seconds
update_seconds baseline_data_seconds baseline_compute_seconds baseline_update_seconds step_median_seconds
step_p95_seconds step_p99_seconds train_loss test_accuracy baseline_test_accuracy oversubscribed warnings job
series configured_size
""".split()
INTEGERS = """
workers threads_per_worker data_size local_batch_size global_batch_size epochs seed updates baseline_updates
repeats configured_size best_threads
""".split()


@dataclass(frozen=True)
class Summary:
    """The table, with what its figures and captions need to know."""

    table: pd.DataFrame  # columns COLUMNS; sorted; failed and missing jobs included
    machine: str | None  # None when no job succeeded
    usable_cores: int | None


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """For making many objects that all stay: to look through them again and again takes longer than to read them."""
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
    good = [job for job in jobs if job.result.status == "ok"]
    refuse_mixed_machines(good)
    labels = series.labels([job.series for job in good])

    singles = SingleWorkers.among(good)
    groups: dict[str, list[Job]] = {}
    for job in good:
        groups.setdefault(job.key, []).append(job)
    rows = [_row(group, singles, labels[group[0].series_key]) for group in groups.values()]
    rows += [_failed_row(job) for job in jobs if job.result.status != "ok"]
    rows += [{"status": job.status, "warnings": job.reason, "job": job.name} for job in unreadable]
    table = pd.DataFrame(rows, columns=list(COLUMNS)).astype(dict.fromkeys(INTEGERS, "Int64"))
    table = table.sort_values(["series", "data_size", "workers", "job"], ignore_index=True, na_position="last")
    environment = good[0].result.environment if good else None
    return Summary(
        table,
        environment.machine if environment else None,
        environment.usable_cores if environment else None,
    )


def _row(group: list[Job], singles: SingleWorkers, label: str) -> dict[str, Any]:
    """One configuration; measured more than once, its blocks are pooled."""
    config = group[0].config
    trainings = [block.candidate for block in kept_blocks(group)]
    time = geometric_mean([own.seconds for own in trainings])
    over = baseline(group, singles)
    speedup, efficiency = over.speedup, over.speedup.scaled(1 / config.workers)
    environment = group[0].result.environment
    oversubscribed = busy_threads(config, environment) > environment.usable_cores
    return {
        **_settings(config),
        "status": "ok",
        "repeats": len(trainings),
        "seconds": time.value,
        "seconds_low": time.low,
        "seconds_high": time.high,
        "samples_per_second": config.epochs * config.train_samples / time.value,
        "baseline": over.name,
        "baseline_seconds": (
            geometric_mean([own.seconds for own in over.trainings]).value if over.trainings else math.nan
        ),
        "speedup": speedup.value,
        "speedup_low": speedup.low,
        "speedup_high": speedup.high,
        "efficiency": efficiency.value,
        "efficiency_low": efficiency.low,
        "efficiency_high": efficiency.high,
        **measures.over_best(config, kept_blocks(group)),
        **measures.counterfactuals(config, kept_blocks(group)),
        **measures.to_target(config, kept_blocks(group)),
        **measures.where_time_went(config, kept_blocks(group)),
        "train_loss": trainings[-1].epoch_losses[-1],
        "test_accuracy": _test_accuracy(trainings),
        "baseline_test_accuracy": _test_accuracy(over.trainings),
        "oversubscribed": oversubscribed,
        "warnings": "; ".join(_warnings(group, over.name)),
        "job": " + ".join(job.name for job in group),
        "series": label,
    }


def _test_accuracy(trainings: list[Training]) -> float:
    """Of the training that was evaluated: the others repeat it."""
    return next((own.test_accuracy for own in trainings if own.test_accuracy is not None), math.nan)


def _warnings(group: list[Job], baseline: str) -> Iterable[str]:
    config, environment = group[0].config, group[0].result.environment
    yield from doubts(config, environment, kept_blocks(group))
    if baseline == "none":
        yield "no baseline: add a workers=1 job, or set measurement.baseline=paired"
    commits = sorted({str(job.result.environment.commit) for job in group})
    if len(commits) > 1:
        yield f"pooled over several commits of dpexp: {', '.join(commits)}"


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


def _failed_row(job: Job) -> dict[str, Any]:
    unfinished = f"interrupted after {len(job.result.kept())} of its blocks: resume it"
    return {
        **_settings(job.config),
        "status": job.result.status,
        "warnings": job.result.error or unfinished,
        "job": job.name,
    }
