"""When not to trust a measurement: what was seen, how bad it is, and what to do about it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import chain

from dpexp.analysis.speedup import Pairs, far_latency, is_calm, paired_speedup, pairs_with_baseline
from dpexp.analysis.undisturbed import disturbed_share, have_steps
from dpexp.config.experiment import ExperimentConfig
from dpexp.machine.environment import Environment
from dpexp.results.schema import Block, Warning
from dpexp.words import counted

# Thresholds: a severity of 1.
DISTURBANCE = 0.03  # of the speedup
UNSETTLED = 100.0  # the severity of having no result: it comes first
OTHER_CORES, STOLEN_CORES, THROTTLED_SHARE = 0.10, 0.05, 0.01
CAUSE_CACHE = 0.02  # enough to explain an efficiency above 100 %


def busy_threads(config: ExperimentConfig, environment: Environment) -> int:
    """Threads that compute at the same time on one machine."""
    return config.threads_per_worker * min(config.processes, environment.local_world_size or config.processes)


def warnings(
    config: ExperimentConfig, environment: Environment, kept: Sequence[Block], baseline: str = ""
) -> list[Warning]:
    """The warnings about one configuration, the most severe first.

    `kept` are the blocks that count; `baseline` is what the speedup is over, "none" for nothing.
    """
    pairs = pairs_with_baseline(kept)
    found = chain(
        _about_settings(config, environment, baseline),
        _about_blocks(config, kept, pairs),
        _about_conditions(environment, kept),
        _about_superlinear_speedup(config, pairs),
    )
    return sorted(found, key=lambda warning: -warning.severity)


def _about_settings(config: ExperimentConfig, environment: Environment, baseline: str) -> Iterator[Warning]:
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


def _about_blocks(config: ExperimentConfig, kept: Sequence[Block], pairs: Pairs) -> Iterator[Warning]:
    if len(kept) == 1:
        yield Warning("one block", 1.0, "one block gives no interval", "increase measurement.repeats")
    if len(pairs) < 2:
        return
    speedup, overall = paired_speedup(config, pairs), paired_speedup(config, pairs, overall=True)
    precision = config.measurement.precision
    if latency := far_latency(chain(*pairs)):
        yield Warning(
            "unsettled",
            UNSETTLED,
            f"the cores were far apart: a cache line took {1e9 * latency.seconds:.0f} ns from one to another and back, "
            f"{1e9 * latency.least_seconds:.0f} ns at other times",
            "the speedup may be anywhere up to the ideal; the host of a virtual machine moves its cores: measure later",
        )
    elif not is_calm(pairs):
        yield Warning(
            "unsettled",
            UNSETTLED,
            f"the machine was disturbed throughout: {_disturbed(pairs)} were slowed down",
            "the speedup may be anywhere up to the ideal; measure again when nobody else uses these cores",
        )
    elif precision is not None and speedup.precision > precision:
        yield Warning(
            "precision",
            speedup.precision / precision,
            f"the speedup is known to {100 * speedup.precision:.1f} % only",
            f"increase measurement.max_seconds (now {config.measurement.max_seconds:g}), epochs or data.size",
        )
    if abs(math.log(overall.value / speedup.value)) > DISTURBANCE:
        yield Warning(
            "disturbed",
            abs(math.log(overall.value / speedup.value)) / DISTURBANCE,
            f"slow spells hit {_disturbed(pairs)}",
            f"they don't count; with all time counted the speedup is {overall.value:.2f} "
            f"({overall.low:.2f} to {overall.high:.2f})",
        )


def _disturbed(pairs: Pairs) -> str:
    """How many steps or turns were disturbed, on the side that was hit more."""
    baselines, candidates = [baseline for baseline, _ in pairs], [candidate for _, candidate in pairs]
    by_steps = have_steps(candidates, sequential=baselines)
    shares = {"workers'": disturbed_share(candidates, by_steps), "baseline's": disturbed_share(baselines, by_steps)}
    most = max(shares, key=lambda side: shares[side])
    return f"{100 * shares[most]:.0f} % of the {most} {'steps' if by_steps else 'turns'}"


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
    trainings = [one for block in kept for name, one in block.trainings.items() if name != "independent"]
    timed = sum(training.seconds for training in trainings)
    if throttled > THROTTLED_SHARE * timed:
        yield Warning(
            "throttled",
            throttled / (THROTTLED_SHARE * timed),
            f"the cgroup's CPU quota held processes back for {throttled:.1f} s",
            "use fewer workers, or raise the quota",
        )


def _about_superlinear_speedup(config: ExperimentConfig, pairs: Pairs) -> Iterator[Warning]:
    """An efficiency above 100 %, with the verdict of each check for a cause."""
    if len(pairs) < 2 or config.workers == 1:
        return
    efficiency = paired_speedup(config, pairs).low / config.workers
    if efficiency <= 1:
        return
    causes = []
    baseline_threads, threads = ({worker.threads for worker in training.workers} for training in pairs[0])
    if baseline_threads != threads:
        causes.append(f"a thread mismatch ({baseline_threads} against {threads})")
    if config.updates < config.baseline().updates:
        causes.append(f"fewer updates ({config.updates:,} against {config.baseline().updates:,})")
    saved = _saved_by_cache(pairs, config.work_ratio)
    if saved > CAUSE_CACHE:
        causes.append(f"cheaper computation ({100 * saved:.0f} % less time a sample, as when more fits in cache)")
    yield Warning(
        "superlinear",
        efficiency,
        "the efficiency is above 100 %",
        f"likely caused by {' and '.join(causes)}" if causes else "no check found a cause; do not trust this result",
    )


def _saved_by_cache(pairs: Pairs, work_ratio: float) -> float:
    """How much less data and compute time the candidate's workers took together, as a share; 0 where unknown."""
    baseline, candidate = (
        sum(worker["data"] + worker["compute"] for pair in pairs for worker in pair[side].phase_seconds)
        for side in (0, 1)
    )
    return 1 - candidate / (baseline * work_ratio) if baseline and candidate else 0.0
