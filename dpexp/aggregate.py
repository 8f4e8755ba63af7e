"""From result files below any folders to one tidy table, a row a configuration."""

from __future__ import annotations

import contextlib
import gc
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from dpexp import measures, results, series
from dpexp.config import ExperimentConfig
from dpexp.doubts import busy_threads, doubts
from dpexp.errors import ResultError
from dpexp.results import Block, RunResult, Training
from dpexp.stats import Estimate, geometric_mean, paired_ratio, unpaired_ratio

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


@dataclass(frozen=True)
class _Job:
    name: str
    result: RunResult

    @property
    def config(self) -> ExperimentConfig:
        return self.result.config

    @cached_property
    def series(self) -> dict[str, Any]:
        """All settings that one curve must share: all but workers, data size and the number of blocks."""
        return series.settings(self.config)

    @cached_property
    def series_key(self) -> str:
        return series.key(self.series)

    @property
    def key(self) -> str:
        """The same for measurements of the same configuration."""
        return json.dumps([self.series_key, self.config.workers, self.config.data.size])


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
    jobs, others = _collect(folders)
    if not jobs and not others:
        raise ResultError(f"no job lies below {', '.join(map(str, folders))}: look for folders with result.json")
    good = [job for job in jobs if job.result.status == "ok"]
    _refuse_mixed_machines(good)
    labels = series.labels([job.series for job in good])

    singles = _SingleWorkers.among(good)
    groups: dict[str, list[_Job]] = {}
    for job in good:
        groups.setdefault(job.key, []).append(job)
    rows = [_row(group, singles, labels[group[0].series_key]) for group in groups.values()]
    rows += [_failed_row(job) for job in jobs if job.result.status != "ok"]
    rows += others
    table = pd.DataFrame(rows, columns=list(COLUMNS)).astype(dict.fromkeys(INTEGERS, "Int64"))
    table = table.sort_values(["series", "data_size", "workers", "job"], ignore_index=True, na_position="last")
    environment = good[0].result.environment if good else None
    return Summary(
        table,
        environment.machine if environment else None,
        environment.usable_cores if environment else None,
    )


def _collect(folders: Sequence[Path]) -> tuple[list[_Job], list[dict[str, Any]]]:
    """All readable jobs, and a row for each one that has no readable result."""
    jobs, others = [], []
    for folder in _job_folders(folders):
        path = folder / results.FILE_NAME
        if not path.exists():
            others.append(_bare_row("missing", f"no {results.FILE_NAME} ({_overrides(folder)})", folder))
            continue
        try:
            jobs.append(_Job(str(folder), results.read(path)))
        except ResultError as error:
            others.append(_bare_row("unreadable", str(error), folder))
    return jobs, others


def _job_folders(folders: Sequence[Path]) -> list[Path]:
    found: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ResultError(f"{folder}: no such folder")
        for path in [*folder.rglob(results.FILE_NAME), *folder.rglob(".hydra")]:
            found.setdefault(path.parent.resolve(), path.parent)
    return sorted(found.values(), key=lambda path: [(len(part), part) for part in path.parts])


def _overrides(folder: Path) -> str:
    try:
        overrides = yaml.safe_load((folder / ".hydra" / "overrides.yaml").read_text())
        return " ".join(map(str, overrides)) or "no overrides"
    except (OSError, yaml.YAMLError, TypeError):
        return "its overrides are unknown"


def _refuse_mixed_machines(jobs: list[_Job]) -> None:
    machines: dict[str, list[str]] = {}
    for job in jobs:
        machines.setdefault(job.result.environment.machine, []).append(job.name)
    if len(machines) > 1:
        parts = "; ".join(f"{machine} ({len(names)}: {names[0]} ...)" for machine, names in machines.items())
        raise ResultError(
            f"these jobs ran on {len(machines)} different set-ups, whose times must not share a curve: {parts}. "
            "Aggregate each alone"
        )


def _row(group: list[_Job], singles: _SingleWorkers, label: str) -> dict[str, Any]:
    """One configuration; measured more than once, its blocks are pooled."""
    config = group[0].config
    trainings = [block.candidate for block in _kept(group)]
    time = geometric_mean([own.seconds for own in trainings])
    baseline = _baseline(group, singles)
    speedup, efficiency = baseline.speedup, baseline.speedup.scaled(1 / config.workers)
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
        "baseline": baseline.name,
        "baseline_seconds": (
            geometric_mean([own.seconds for own in baseline.trainings]).value if baseline.trainings else math.nan
        ),
        "speedup": speedup.value,
        "speedup_low": speedup.low,
        "speedup_high": speedup.high,
        "efficiency": efficiency.value,
        "efficiency_low": efficiency.low,
        "efficiency_high": efficiency.high,
        **measures.over_best(config, _kept(group)),
        **measures.counterfactuals(config, _kept(group)),
        **measures.to_target(config, _kept(group)),
        **measures.where_time_went(config, _kept(group)),
        "train_loss": trainings[-1].epoch_losses[-1],
        "test_accuracy": _test_accuracy(trainings),
        "baseline_test_accuracy": _test_accuracy(baseline.trainings),
        "oversubscribed": oversubscribed,
        "warnings": "; ".join(_warnings(group, baseline.name)),
        "job": " + ".join(job.name for job in group),
        "series": label,
    }


@dataclass(frozen=True)
class _Baseline:
    """What a configuration's speedup is over."""

    name: str
    trainings: list[Training]
    speedup: Estimate


def _baseline(group: list[_Job], singles: _SingleWorkers) -> _Baseline:
    """The sequential trainings of the same blocks, else the workers=1 jobs of the same settings.

    Speedup is the ratio of throughputs. For equal samples that is T(sequential) / T(w); in weak scaling,
    where w workers see w times the baseline's samples, it is w T(1) / T(w) (Gustafson 1988).
    """
    config = group[0].config
    blocks = _kept(group)
    pairs = [(block.baseline, block.candidate) for block in blocks if block.baseline is not None]
    if pairs:
        seconds = [own.seconds for own, _ in pairs], [own.seconds for _, own in pairs]
        ratio = paired_ratio(*seconds, pilot=config.measurement.pilot)
        return _Baseline("sequential in the same blocks", [own for own, _ in pairs], ratio.scaled(config.work_ratio))
    single = singles.of(group[0])
    trainings = [block.candidate for block in _kept(single)]
    if not single:
        return _Baseline("none", trainings, Estimate(math.nan, math.nan, math.nan))
    if single[0].key == group[0].key:
        return _Baseline("itself", trainings, Estimate(1.0, math.nan, math.nan))
    ratio = unpaired_ratio([own.seconds for own in trainings], [block.candidate.seconds for block in blocks])
    return _Baseline(f"{single[0].config.strategy.name} workers=1 job", trainings, ratio.scaled(config.work_ratio))


def _kept(jobs: list[_Job]) -> list[Block]:
    return [block for job in jobs for block in job.result.kept()]


def _test_accuracy(trainings: list[Training]) -> float:
    """Of the training that was evaluated: the others repeat it."""
    return next((own.test_accuracy for own in trainings if own.test_accuracy is not None), math.nan)


@dataclass(frozen=True)
class _SingleWorkers:
    """The good workers=1 jobs, found by all settings but the strategy."""

    jobs: dict[str, list[_Job]]

    @classmethod
    def among(cls, good: list[_Job]) -> _SingleWorkers:
        jobs: dict[str, list[_Job]] = {}
        for job in good:
            if job.config.workers == 1:
                jobs.setdefault(cls._key(job, job.config.strategy.name), []).append(job)
        return cls(jobs)

    def of(self, job: _Job) -> list[_Job]:
        """Those of the same configuration and strategy, else of the sequential one."""
        names = (job.config.strategy.name, "sequential")
        return next((found for name in names if (found := self.jobs.get(self._key(job, name)))), [])

    @staticmethod
    def _key(job: _Job, strategy: str) -> str:
        settings = {name: value for name, value in job.series.items() if not name.startswith("strategy.")}
        return json.dumps([settings, job.config.data.size, strategy])


def _warnings(group: list[_Job], baseline: str) -> Iterable[str]:
    config, environment = group[0].config, group[0].result.environment
    yield from doubts(config, environment, _kept(group))
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


def _failed_row(job: _Job) -> dict[str, Any]:
    unfinished = f"interrupted after {len(job.result.kept())} of its blocks: resume it"
    return {
        **_settings(job.config),
        "status": job.result.status,
        "warnings": job.result.error or unfinished,
        "job": job.name,
    }


def _bare_row(status: str, reason: str, folder: Path) -> dict[str, Any]:
    return {"status": status, "warnings": reason, "job": str(folder)}
