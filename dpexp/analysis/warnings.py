"""Warnings about a measurement: the problem, its severity, and advice."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from dpexp.analysis.arm_statistics import ArmStatistics
from dpexp.analysis.estimate import Estimate
from dpexp.analysis.ratio_estimate import Comparison
from dpexp.analysis.speedup import Speedup
from dpexp.config.job import CANDIDATE, JobConfig
from dpexp.errors import format_number, pluralize
from dpexp.results.schema import Block, JobResult

BATCH = "batch"  # a kind of warning: all speedups are wrong

# A value at its threshold has a severity of 1.
DISTURBANCE = 0.03  # relative difference of the speedup
OTHER_CORES, STOLEN_CORES, THROTTLED_SHARE = 0.10, 0.05, 0.01
SELF_COMPARISON = 1.5  # half-widths of the interval: beyond, by chance in less than 1 % of cases
MIN_TURNS = 12  # turns of an arm that a usable interval needs
MAX_SEVERITY = 1e6  # of warnings that all speedups are wrong
MAX_BATCH_RATIO = 1.25  # between the samples that a model receives and those that batch.scope implies
EXTRAPOLATION = 0.1  # relative difference of a training's time, beyond the range of its turns
USUAL_TURNS = (0.025, 0.975)  # quantiles


@dataclass(frozen=True)
class MeasurementWarning:
    """One reason for doubt. `severity` is the value as a multiple of its threshold, so that kinds can be ranked."""

    kind: str
    severity: float
    text: str
    advice: str

    def __str__(self) -> str:
        return f"{self.text}: {self.advice}"


def find_warnings(result: JobResult, speedup: Speedup, is_self_comparison: bool = False) -> list[MeasurementWarning]:
    """Return the warnings about one configuration, the most severe first. `result` is one of its results."""
    candidate = speedup.candidate
    config, blocks = candidate.config, candidate.all_blocks
    found = chain(
        _precision_warnings(config, blocks, speedup.comparison),
        _disturbance_warnings(speedup.comparison),
        _self_comparison_warnings(speedup.comparison.shown) if is_self_comparison else (),
        *(_extrapolation_warnings(arm) for arm in (candidate, speedup.baseline) if arm is not None and arm.trainings),
        _conditions_warnings(result, blocks),
        _samples_warnings(speedup),
    )
    return sorted(found, key=lambda warning: -warning.severity)


def _above(threshold: float, value: float, kind: str, text: str, advice: str) -> Iterator[MeasurementWarning]:
    """Yield a warning if the value is above the threshold."""
    if value > threshold:
        yield MeasurementWarning(kind, value / threshold, text, advice)


def _precision_warnings(
    config: JobConfig, blocks: Sequence[Block], comparison: Comparison
) -> Iterator[MeasurementWarning]:
    settings = config.measurement
    limit, repeats = settings.max_seconds or config.default_max_seconds[0], settings.repeats
    turns = sum(len(block.arms[CANDIDATE].turns) for block in blocks)  # the baseline has as many
    if turns < MIN_TURNS:
        seconds = max(sum(block.wall_seconds for block in blocks), limit)
        text = f"there was time for only {pluralize(turns, 'turn')} of each training"
        advice = f"set measurement.max_seconds={math.ceil(seconds * MIN_TURNS / turns)} or more"
        yield MeasurementWarning("few turns", MIN_TURNS / turns, text, advice)
        return
    if len(blocks) == 1 < repeats:
        text = f"there was time for only 1 of {repeats} blocks, so it is unknown how much blocks differ"
        advice = f"set measurement.max_seconds={math.ceil(max(limit, repeats * blocks[0].wall_seconds))} or more"
        yield MeasurementWarning("few blocks", 2.0, text, advice)
    if settings.precision is not None:
        now = "" if settings.max_seconds is None else f" (now {settings.max_seconds:g})"
        off = comparison.shown.precision
        width = f"{100 * off:.1f} %" if off < 1 else f"a factor of {1 + off:.1f}"
        text = f"the speedup is known only to within {width}"
        advice = f"increase measurement.max_seconds{now}"
        yield from _above(settings.precision, off, "precision", text, advice)


def _disturbance_warnings(comparison: Comparison) -> Iterator[MeasurementWarning]:
    if comparison.undisturbed is not None:
        text = f"other programs or virtual machines slowed down {100 * comparison.disturbed_share:.0f} % of the steps"
        undisturbed, overall = comparison.undisturbed, comparison.overall
        advice = f"undisturbed, the speedup is {undisturbed:.2f}; with all time counted, it is {overall:.2f}"
        off = abs(math.log(overall.value / undisturbed.value))
        yield from _above(DISTURBANCE, off, "disturbed", text, advice)


def _self_comparison_warnings(speedup: Estimate) -> Iterator[MeasurementWarning]:
    """Warn if a training compared with itself is too far from 1 to be one of the 5 % of intervals that miss it."""
    off = abs(math.log(speedup.value)) / math.log1p(speedup.precision) if speedup.precision else 0.0
    text = f"one process compared with itself (A/A) is {speedup:.2f} times as fast, not 1"
    advice = (
        "the machine's state changed too much for these intervals; measure again, or increase measurement.max_seconds"
    )
    yield from _above(SELF_COMPARISON, off, "A/A", text, advice)


def _extrapolation_warnings(arm: ArmStatistics) -> Iterator[MeasurementWarning]:
    """Warn about whole trainings that took more or less time than their turns predict."""
    seconds, predicted = arm.trained_seconds, arm.overall_seconds.value
    turns = [np.mean(turn) for of_block in arm.arms for turn in of_block.turns]
    least, most = arm.steps * np.quantile(turns, USUAL_TURNS) + arm.between_epochs_seconds
    took, expected = format_number(seconds), format_number(predicted)
    text = f"a whole training ({arm.arm_name}) took {took} s, but its steps predict {expected} s"
    advice = "the machine's speed has changed, or the training spends time outside of its steps; measure again"
    off = max(math.log(least / seconds), math.log(seconds / most))
    yield from _above(EXTRAPOLATION, off, "extrapolation", text, advice)


def _conditions_warnings(result: JobResult, blocks: Sequence[Block]) -> Iterator[MeasurementWarning]:
    conditions, cores = [block.conditions for block in blocks], result.environment.usable_cores
    other = max(block.other_cores for block in conditions)
    if cores == result.environment.logical_cores:  # in a container, the counters are the host's
        text = f"other programs used up to {other:.1f} of {cores} cores"
        yield from _above(OTHER_CORES, other, "other programs", text, "stop them while measuring")
    stolen = max(block.stolen_cores for block in conditions)
    text = f"the hypervisor took up to {stolen:.1f} cores away from this virtual machine"
    yield from _above(STOLEN_CORES, stolen, "stolen time", text, "measure at another time")
    throttled = sum(block.throttled_seconds for block in conditions)
    timed = sum(arm.all_step_seconds.sum() for block in blocks for arm in block.arms.values())
    text = f"the cgroup's CPU quota held processes back for {throttled:.1f} s"
    advice = "use fewer workers, or raise the quota"
    yield from _above(THROTTLED_SHARE * timed, throttled, "throttled", text, advice)


def _samples_warnings(speedup: Speedup) -> Iterator[MeasurementWarning]:
    """Warn if the samples that a script's model receives in a step contradict batch.scope."""
    candidate, baseline = speedup.candidate, speedup.baseline
    if baseline is None or not (candidate.received_samples and baseline.received_samples):
        return
    scope, workers = candidate.config.batch.scope, candidate.config.workers
    expected = candidate.config.local_batch_size / baseline.config.local_batch_size
    off = abs(math.log(candidate.received_samples / baseline.received_samples / expected))
    text = (
        f"in a step, the model receives {candidate.received_samples:g} samples in each of {workers} workers, and "
        f"{baseline.received_samples:g} in one process, which contradicts batch.scope={scope}: "
        f"speedups are wrong by a factor of {math.exp(off):.2g}"
    )
    other = "global" if scope == "per_worker" else "per_worker"
    advice = f"set batch.scope={other}, or pass another placeholder to the script"
    if off > math.log(MAX_BATCH_RATIO):
        yield MeasurementWarning(BATCH, MAX_SEVERITY, text, advice)
    elif abs(math.log(candidate.received_samples / candidate.config.local_batch_size)) > math.log(MAX_BATCH_RATIO):
        text = (
            f"in a step, the model receives {candidate.received_samples:g} samples in each process, but batch.size "
            f"stands for {candidate.config.local_batch_size}: seconds and samples per second are computed from it"
        )
        advice = "set batch.size to the samples of one update, gradient accumulation included"
        yield MeasurementWarning("samples", 10.0, text, advice)
    if baseline.exchanges_gradients and workers > 1:
        text = "the baseline's single process trains with DistributedDataParallel, which slows it down"
        advice = "if the script also trains without it, set script.baseline_command to that command"
        yield MeasurementWarning("baseline exchanges", 1.0, text, advice)
