"""When not to believe a measurement: what was seen, and what to do about it. Pure functions of results."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from itertools import chain

from dpexp.config import ExperimentConfig
from dpexp.environment import Environment
from dpexp.results import Block, Training
from dpexp.stats import paired_ratio, pairs_needed

DRIFT, SPREAD, SHORT_SECONDS = 0.10, 0.10, 0.5
COLD, SAVED = 0.25, 0.02
OTHER_CORES, STOLEN_CORES, THROTTLED_SHARE = 0.10, 0.05, 0.01

# Doubts that the table for people says in its own way.
OVERSUBSCRIBED, FEWER_UPDATES = "oversubscribed", "fewer updates than the baseline"
TIMED_FOR_ONLY = "timed for only"  # the one that is worse the smaller its number


def busy_threads(config: ExperimentConfig, environment: Environment) -> int:
    """Threads that compute at the same time on one machine."""
    processes = config.workers if config.strategy.name in ("sync_dp", "ddp") else 1
    return config.threads_per_worker * min(processes, environment.local_world_size or processes)


def doubts(config: ExperimentConfig, environment: Environment, kept: Sequence[Block]) -> list[str]:
    """A line for each, "what was seen: what to do"; `kept` are the blocks that count."""
    pairs = [(block.baseline, block.candidate) for block in kept if block.baseline is not None]
    return list(
        chain(
            _of_settings(config, environment),
            _of_blocks(config, kept, pairs),
            _of_conditions(environment, kept),
            _of_too_much(config, pairs),
        )
    )


def _of_settings(config: ExperimentConfig, environment: Environment) -> Iterator[str]:
    threads, cores = busy_threads(config, environment), environment.usable_cores
    if threads > cores:
        yield f"{OVERSUBSCRIBED}: {threads} threads on {cores} cores"
    updates, baseline_updates = config.updates, config.baseline().updates
    if updates < baseline_updates:
        yield f"{FEWER_UPDATES}: {updates:,} against {baseline_updates:,}"
    quota = environment.cgroup_cpu_quota
    if quota is not None and quota < threads:
        yield f"the cgroup allows {quota:g} CPUs for {threads} threads: use fewer workers, or raise the quota"


def _of_blocks(
    config: ExperimentConfig, kept: Sequence[Block], pairs: Sequence[tuple[Training, Training]]
) -> Iterator[str]:
    if len(kept) == 1:
        yield "one block: no interval, so raise measurement.repeats"
    shortest = min(training.seconds for block in kept for training in _trainings(block))
    if shortest < SHORT_SECONDS:
        yield f"{TIMED_FOR_ONLY} {shortest:.2g} s: raise data.size or epochs until it takes {SHORT_SECONDS} s"
    if (cold := _cold(pairs)) > 1 + COLD:
        yield f"a cold baseline, {cold:.1f} times as slow in its first block as in the others: raise measurement.warmup"
    if len(pairs) > 2:
        spread = statistics.stdev(math.log(alone.seconds / own.seconds) for alone, own in pairs)
        if spread > SPREAD:
            yield (
                f"the blocks' speedups spread by {100 * spread:.0f} %: "
                "raise measurement.repeats, or set measurement.precision"
            )
    precision, pilot = config.measurement.precision, pairs[: config.measurement.repeats]
    if precision is not None and len(pilot) > 1:
        needed = pairs_needed([alone.seconds for alone, _ in pilot], [own.seconds for _, own in pilot], precision)
        if needed > len(pairs):
            yield (
                f"precision {100 * precision:g} % needs {needed} blocks, {len(pairs)} were made in "
                f"measurement.max_seconds={config.measurement.max_seconds:g}: raise it"
            )


def _of_conditions(environment: Environment, kept: Sequence[Block]) -> Iterator[str]:
    conditions = [block.conditions for block in kept]
    for what in ("arithmetic", "memory"):
        seconds = [getattr(one, f"{what}_seconds") for one in conditions]
        if min(seconds) > 0 and (drift := max(seconds) / min(seconds) - 1) > DRIFT:
            yield f"the machine's speed ({what}) drifted by {100 * drift:.0f} %: ratios hold within blocks, times don't"
    other = max(one.other_cores for one in conditions)
    sees_all = environment.usable_cores == environment.logical_cores  # in a container, the counters are the host's
    if other > OTHER_CORES and sees_all:
        yield f"other programs used up to {other:.1f} of {environment.usable_cores} cores: end them"
    stolen = max(one.stolen_cores for one in conditions)
    if stolen > STOLEN_CORES:
        yield f"the host took up to {stolen:.1f} cores from this virtual machine: measure at another time"
    held = sum(one.throttled_seconds for one in conditions)
    if held > THROTTLED_SHARE * sum(training.seconds for block in kept for training in _trainings(block)):
        yield f"the cgroup's CPU quota held processes back for {held:.1f} s: use fewer workers, or raise the quota"


def _of_too_much(config: ExperimentConfig, pairs: Sequence[tuple[Training, Training]]) -> Iterator[str]:
    """More than 100 % efficiency: the verdict of each check of what could feign it."""
    if len(pairs) < 2 or config.workers == 1:
        return
    seconds = [alone.seconds for alone, _ in pairs], [own.seconds for _, own in pairs]
    ratio = paired_ratio(*seconds, pilot=config.measurement.pilot)
    if ratio.low * config.work_ratio / config.workers <= 1:
        return
    causes = []
    if (cold := _cold(pairs)) > 1 + DRIFT:
        causes.append(f"a cold baseline (its first block took {cold:.2f} times as long as the others)")
    threads = [{worker.threads for worker in training.workers} for training in pairs[0]]
    if threads[0] != threads[1]:
        causes.append(f"a thread mismatch ({threads[0]} against {threads[1]})")
    if config.updates < config.baseline().updates:
        causes.append(f"fewer updates ({config.updates:,} against {config.baseline().updates:,})")
    saved = _saved_by_cache(pairs, config.work_ratio)
    if saved > SAVED:
        causes.append(f"cheaper computation ({100 * saved:.0f} % less time a sample, as when more fits in cache)")
    yield f"efficiency over 100 %: the checks blame {' and '.join(causes) or 'nothing, so doubt the measurement'}"


def _cold(pairs: Sequence[tuple[Training, Training]]) -> float:
    """How many times as long as the others the baseline's first training took; 1 where there are no others."""
    return pairs[0][0].seconds / statistics.median(alone.seconds for alone, _ in pairs[1:]) if len(pairs) > 1 else 1.0


def _saved_by_cache(pairs: Sequence[tuple[Training, Training]], work_ratio: float) -> float:
    """How much less data and compute time the candidate's workers took together, as a share; 0 where unknown."""
    alone, own = (
        sum(worker["data"] + worker["compute"] for pair in pairs for worker in pair[side].phase_seconds)
        for side in (0, 1)
    )
    return 1 - own / (alone * work_ratio) if alone and own else 0.0


def _trainings(block: Block) -> list[Training]:
    return [training for training in (block.candidate, block.baseline, block.best) if training is not None]
