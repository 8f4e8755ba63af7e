"""When not to trust a measurement: what was seen, how bad it is, and what to do about it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np

from dpexp.analysis.intervals import Estimate
from dpexp.analysis.ratios import Comparison
from dpexp.analysis.side import Side
from dpexp.config.job import JobConfig
from dpexp.errors import counted
from dpexp.machine.environment import Environment
from dpexp.results.schema import CANDIDATE, Block, Warning

# Thresholds: a severity of 1.
DISTURBANCE = 0.03  # of the speedup
OTHER_CORES, STOLEN_CORES, THROTTLED_SHARE = 0.10, 0.05, 0.01
CAUSE_CACHE = 0.02  # enough to explain an efficiency above 100 %
LEAST_TURNS = 12  # of an arm, for an interval worth having
EXTRAPOLATION = 0.1  # of a training's time, beyond what its turns tell
USUAL_TURNS = (0.025, 0.975)  # quantiles


def busy_threads(config: JobConfig, environment: Environment) -> int:
    """Threads that compute at the same time on one machine."""
    return config.threads_per_worker * min(config.processes, environment.local_world_size or config.processes)


def warnings(
    config: JobConfig,
    environment: Environment,
    blocks: Sequence[Block],
    found: Comparison,
    sides: Sequence[Side],
    baseline: str,
) -> list[Warning]:
    """The warnings about one configuration, the most severe first.

    `blocks` are those that count; `found` is the speedup over what `baseline` names ("none" for nothing); `sides` are
    the candidate and, where there is one, the baseline.
    """
    every = chain(
        _about_settings(config, environment, baseline),
        _about_precision(config, blocks, found),
        _about_extrapolation(sides),
        _about_conditions(environment, blocks),
        _about_superlinear_speedup(config, found, sides),
    )
    return sorted(every, key=lambda warning: -warning.severity)


def _about_settings(config: JobConfig, environment: Environment, baseline: str) -> Iterator[Warning]:
    if baseline == "none":
        yield Warning("no baseline", 1.0, "no baseline", "add a workers=1 job, or set measurement.baseline=paired")
    threads, cores = busy_threads(config, environment), environment.usable_cores
    if threads > cores:
        yield Warning(
            "oversubscribed",
            threads / cores,
            f"{counted(threads, 'thread')} on {counted(cores, 'core')}",
            "use fewer workers or threads",
        )
    updates, baseline_updates = config.updates, config.baseline().updates
    if updates < baseline_updates:
        yield Warning(
            "fewer updates",
            baseline_updates / updates,
            f"fewer updates than the baseline ({updates:,} against {baseline_updates:,})",
            "compare the accuracies, too, or set batch.scope=global",
        )
    quota = environment.cgroup_cpu_quota
    if quota is not None and quota < threads:
        yield Warning(
            "quota",
            threads / quota,
            f"the cgroup allows {quota:g} CPUs for {counted(threads, 'thread')}",
            "use fewer workers, or raise the quota",
        )


def _about_precision(config: JobConfig, blocks: Sequence[Block], found: Comparison) -> Iterator[Warning]:
    settings = config.measurement
    turns = sum(len(block.arms[CANDIDATE].turn_seconds) for block in blocks)  # those of all other arms are as many
    if turns < LEAST_TURNS:
        seconds = sum(block.wall_seconds for block in blocks)
        yield Warning(
            "long steps",
            LEAST_TURNS / turns,
            f"steps are so long that there was time for {counted(turns, 'turn')} of each training only",
            f"set measurement.max_seconds={math.ceil(seconds * LEAST_TURNS / turns)} or more",
        )
    elif settings.precision is not None and found.shown.precision > settings.precision:
        now = "" if settings.max_seconds is None else f" (now {settings.max_seconds:g})"
        yield Warning(
            "precision",
            found.shown.precision / settings.precision,
            f"the speedup is known to {100 * found.shown.precision:.1f} % only",
            f"increase measurement.max_seconds{now}",
        )
    if found.undisturbed is None:
        return
    off = abs(math.log(found.here.value / found.undisturbed.value))
    if off > DISTURBANCE:
        yield Warning(
            "disturbed",
            off / DISTURBANCE,
            f"others slowed down {100 * found.disturbed_share:.0f} % of the steps",
            f"undisturbed, the speedup is {_shown(found.undisturbed)}; as it is here, with all time counted, "
            f"{_shown(found.here)}",
        )


def _about_extrapolation(sides: Sequence[Side]) -> Iterator[Warning]:
    """Whole trainings that took more or less time than any turns tell."""
    for side in sides:
        if not side.trainings:
            continue
        seconds = sum(training.seconds for training in side.trainings) / len(side.trainings)
        turns = [np.mean(turn) for block in side.every or side.blocks for turn in block.arms[side.arm].turn_seconds]
        least, most = (side.steps * float(one) for one in np.quantile(turns, USUAL_TURNS))
        off, told = max(math.log(least / seconds), math.log(seconds / most)), side.seconds_as_it_is.value
        if off > EXTRAPOLATION:
            yield Warning(
                "extrapolation",
                off / EXTRAPOLATION,
                f"whole trainings ({side.arm}) took {seconds:.3g} s, and their steps tell {told:.3g} s",
                "the machine's speed has changed, or some of their time belongs to no step; measure again",
            )


def _about_conditions(environment: Environment, kept: Sequence[Block]) -> Iterator[Warning]:
    conditions = [block.conditions for block in kept]
    other = max(block.other_cores for block in conditions)
    sees_all = environment.usable_cores == environment.logical_cores  # in a container, the counters are the host's
    if other > OTHER_CORES and sees_all:
        yield Warning(
            "other programs",
            other / OTHER_CORES,
            f"other programs used up to {other:.1f} of {environment.usable_cores} cores",
            "stop them while measuring",
        )
    stolen = max(block.stolen_cores for block in conditions)
    if stolen > STOLEN_CORES:
        yield Warning(
            "stolen time",
            stolen / STOLEN_CORES,
            f"the host took up to {stolen:.1f} cores away from this virtual machine",
            "measure at another time",
        )
    throttled = sum(block.throttled_seconds for block in conditions)
    timed = sum(arm.seconds for block in kept for arm in block.arms.values())
    if throttled > THROTTLED_SHARE * timed:
        yield Warning(
            "throttled",
            throttled / (THROTTLED_SHARE * timed),
            f"the cgroup's CPU quota held processes back for {throttled:.1f} s",
            "use fewer workers, or raise the quota",
        )


def _about_superlinear_speedup(config: JobConfig, found: Comparison, sides: Sequence[Side]) -> Iterator[Warning]:
    """An efficiency above 100 %, with the verdict of each check for a cause."""
    efficiency = found.shown.low / config.workers
    if config.workers == 1 or len(sides) < 2 or not efficiency > 1:
        return
    own, baseline = sides
    causes = []
    if baseline.threads != own.threads:
        causes.append(f"a thread mismatch ({baseline.threads} against {own.threads})")
    if config.updates < config.baseline().updates:
        causes.append(f"fewer updates ({config.updates:,} against {config.baseline().updates:,})")
    saved = _saved_by_cache(own, baseline)
    if saved > CAUSE_CACHE:
        causes.append(f"cheaper computation ({100 * saved:.0f} % less time a sample, as when more fits in cache)")
    yield Warning(
        "superlinear",
        efficiency,
        "the efficiency is above 100 %",
        f"likely caused by {' and '.join(causes)}" if causes else "no check found a cause; do not trust this result",
    )


def _saved_by_cache(own: Side, baseline: Side) -> float:
    """How much less data and compute time a sample takes the workers together, as a share; 0 where unknown."""
    taken = [
        sum(process["data"] + process["compute"] for process in side.phases) / side.samples_per_step
        for side in (baseline, own)
    ]
    return 1 - taken[1] / taken[0] if all(taken) else 0.0


def _shown(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})"
