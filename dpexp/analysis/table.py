"""The table of all results below some folders, one row per configuration."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from dpexp.analysis import speedup
from dpexp.analysis.arm_statistics import ArmStatistics, mean_of_known
from dpexp.analysis.efficiency import SecondsByPhase, efficiency_factors
from dpexp.analysis.ratio_estimate import compare, estimate_job_ratio, find_spread_ratio
from dpexp.analysis.slow_worker import find_slow_worker
from dpexp.analysis.speedup import Speedup
from dpexp.analysis.table_row import INTEGER_COLUMNS, Row
from dpexp.analysis.warnings import find_warnings
from dpexp.config.built_in import BuiltInConfig
from dpexp.config.job import BASELINE, CANDIDATE, SHARED_MEMORY, JobConfig
from dpexp.config.script import ScriptConfig
from dpexp.errors import pluralize
from dpexp.phases import PHASES, USEFUL
from dpexp.results import series
from dpexp.results.series import SeriesMember
from dpexp.results.storage import read_jobs, refuse_mixed_machines


@dataclass(frozen=True, eq=False)  # compared by identity, so that derived values can be cached
class Summary:
    """The rows of the table, failed and missing jobs last, and the machine of the measurement."""

    rows: list[Row]
    machine: str | None  # None when no job succeeded
    usable_cores: int | None

    @functools.cached_property
    def table(self) -> pd.DataFrame:
        """The rows as a data frame with the columns of `results.csv`."""
        columns = pd.DataFrame([row.columns() for row in self.rows])
        table: pd.DataFrame = columns.astype(dict.fromkeys(INTEGER_COLUMNS, "Int64"))
        return table

    @property
    def measured(self) -> list[Row]:
        """The rows of configurations that were measured."""
        return [row for row in self.rows if row.status == "ok"]


def aggregate(folders: Sequence[Path]) -> Summary:
    """Read all jobs below `folders` into a table. Raises ResultError if there is no job, or machines are mixed."""
    results, problems = read_jobs(folders)
    members = series.series_members(results)
    good = [member for member in members if member.result.status == "ok"]
    refuse_mixed_machines({member.name: member.result for member in good})
    failed = [member for member in members if member.result.status != "ok"]
    rows = [*_good_rows(good), *_failed_rows(good, failed, problems)]
    if not good:
        return Summary(rows, None, None)
    environment = good[0].result.environment
    return Summary(rows, environment.machine, environment.usable_cores)


def _good_rows(good: Sequence[SeriesMember]) -> list[Row]:
    differing = series.differences([member.settings for member in good])
    spreads = [estimate_job_ratio(member.result.blocks, BASELINE, CANDIDATE) for member in good]
    spread_ratio = find_spread_ratio([spread for spread in spreads if spread is not None])
    configurations: dict[tuple[str, int, int], list[SeriesMember]] = {}
    for member in good:
        config = member.result.config
        configurations.setdefault((member.series_key, config.workers, config.data.size), []).append(member)
    comparable: dict[str, list[list[SeriesMember]]] = {}
    for members in configurations.values():
        comparable.setdefault(members[0].comparison_key, []).append(members)
    rows = []
    for group in comparable.values():
        best = speedup.common_best_threads(group)
        rows += [_row(members, differing[members[0].series_key], spread_ratio, best) for members in group]
    order = {series.label(settings): place for place, settings in enumerate(differing.values())}  # as they were typed
    return sorted(rows, key=lambda row: (order[row.series], row.data_size, row.workers, row.jobs))


def _failed_rows(
    good: Sequence[SeriesMember], failed: Sequence[SeriesMember], problems: Sequence[tuple[str, str, str]]
) -> list[Row]:
    """Return the rows of jobs without a usable result, labelled by their differences from all other jobs."""
    differing = series.differences([member.settings for member in (*good, *failed)])
    rows = []
    for member in sorted(failed, key=lambda member: member.name):
        result, label = member.result, series.label(differing[member.series_key])
        done = pluralize(len(result.blocks), "block")
        problem = result.error or f"interrupted after {done}; resume it to finish"
        settings = _setting_columns(member.result.config)
        rows.append(Row(status=result.status, **settings, problem=problem, jobs=(member.name,), series=label))
    rows += [Row(status=status, problem=problem, jobs=(name,)) for name, status, problem in problems]
    return rows


def _row(members: list[SeriesMember], differing: Mapping[str, Any], spread_ratio: float, best: int | None) -> Row:
    """Return the row of one configuration; the blocks of all of its jobs are pooled."""
    config, first = members[0].result.config, members[0].result
    measured = speedup.over_baseline(members, spread_ratio)
    candidate, baseline, ratio = measured.candidate, measured.baseline, measured.comparison
    blocks = [member.result.blocks for member in members]
    row = Row(
        status="ok",
        **_setting_columns(config) | {"threads_per_worker": candidate.threads},
        repeats=sum(map(len, blocks)),
        seconds=candidate.seconds,
        overall_seconds=candidate.overall_seconds.value,
        trained_seconds=candidate.trained_seconds,
        samples_per_second=config.epochs * config.train_samples / candidate.seconds.value,
        **(_baseline_columns(candidate, baseline) if baseline else {}),
        gradient_bytes=candidate.arms[0].gradient_bytes,
        memory_bytes=candidate.memory_bytes,
        speedup=ratio.shown,
        overall_speedup=ratio.overall,
        disturbed_share=ratio.disturbed_share,
        efficiency=ratio.shown.scaled(1 / config.workers),
        **_best_sequential_columns(measured, speedup.over_best_sequential(members, spread_ratio, best)),
        shared_memory_speedup=compare(
            blocks, baseline=CANDIDATE, candidate=SHARED_MEMORY, spread_ratio=spread_ratio
        ).overall,
        **_factor_columns(candidate, baseline),
        **find_slow_worker(candidate.arms, baseline.arms if baseline else []),
        phases=_training_phases(candidate, candidate.phases, PHASES),
        train_loss=mean_of_known([training.epoch_losses[-1] for training in candidate.trainings]),
        test_accuracy=candidate.test_accuracy,
        oversubscribed=first.threads_on_host > first.environment.usable_cores,
        jobs=tuple(member.name for member in members),
        series=series.label(differing),
        option=_option(config.workers, candidate.threads, differing),
        comparison_key=members[0].comparison_key,
        step_seconds=candidate.step_seconds,
        has_other_baseline=isinstance(config, ScriptConfig) and config.command_words != config.baseline().command_words,
    )
    return dataclasses.replace(row, warnings=tuple(find_warnings(first, measured, row.is_self_comparison)))


def _option(workers: int, threads: int, differing: Mapping[str, Any]) -> str:
    """Return what distinguishes a row from comparable ones, such as "loaders=2 with 2 workers x 4 threads"."""
    text = pluralize(workers, "worker")
    if "threads_per_worker" in differing:
        text += f" x {pluralize(threads, 'thread')}"
    arguments = series.label({name: value for name, value in differing.items() if name != "threads_per_worker"})
    return f"{arguments} with {text}" if arguments else text


def _baseline_columns(candidate: ArmStatistics, baseline: ArmStatistics) -> dict[str, Any]:
    target = candidate.config.target_accuracy if isinstance(candidate.config, BuiltInConfig) else None
    reached = {} if target is None else speedup.time_to_target(target, candidate, baseline)
    return reached | {
        "baseline_threads": baseline.threads,
        "baseline_seconds": baseline.seconds.value,
        "baseline_memory_bytes": baseline.memory_bytes,
        "baseline_overall_seconds": baseline.overall_seconds.value,
        "baseline_trained_seconds": baseline.trained_seconds,
        "baseline_test_accuracy": baseline.test_accuracy,
        "baseline_step_seconds": baseline.step_seconds,
        "baseline_compute": baseline.compute_seconds,
        "baseline_phases": _training_phases(baseline, baseline.phases[:1], USEFUL),
    }


def _best_sequential_columns(measured: Speedup, best: Speedup | None) -> dict[str, Any]:
    if best is None or best.baseline is None:
        return {}
    seconds = best.comparison.overall.value * measured.candidate.overall_seconds.value
    if None not in (best.comparison.undisturbed, measured.comparison.undisturbed):  # as the row's seconds
        seconds = best.comparison.shown.value * measured.candidate.seconds.value
    return {
        "best_sequential_threads": best.baseline.threads,
        "best_sequential_seconds": seconds,
        "best_sequential_speedup": best.comparison.shown,
        "overall_best_sequential_speedup": best.comparison.overall,
    }


def _factor_columns(candidate: ArmStatistics, baseline: ArmStatistics | None) -> dict[str, Any]:
    """Return the factors of efficiency; one process that emulates several workers has no parallel efficiency."""
    workers = candidate.phases if len(candidate.phases) == candidate.config.workers else []
    ratio = candidate.samples_per_step / baseline.samples_per_step if baseline else math.nan
    return efficiency_factors(candidate.step_seconds, workers, baseline.phases if baseline else [], ratio)


def _training_phases(arm: ArmStatistics, processes: Sequence[SecondsByPhase], among: Sequence[str]) -> dict[str, float]:
    """Return the seconds of some processes in a whole training, by phase; {} if they are unknown."""
    known = processes[0] if processes else ()
    return {phase: arm.steps * sum(process[phase] for process in processes) for phase in known if phase in among}


def _setting_columns(config: JobConfig) -> dict[str, Any]:
    return {
        **config.table_settings,
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
