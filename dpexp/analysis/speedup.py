"""Speedups: over the paired baseline, over the workers=1 jobs of a sweep, over the best sequential process."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from dpexp.analysis.intervals import UNKNOWN, Estimate, geometric_mean, paired_ratio, unpaired_ratio
from dpexp.analysis.series import Member
from dpexp.analysis.undisturbed import have_steps, undisturbed_seconds
from dpexp.config.experiment import ExperimentConfig
from dpexp.machine.core_latency import CoreLatency
from dpexp.results.schema import Block, Training

Pairs = Sequence[tuple[Training, Training]]
"""Trainings that took turns in the same block."""

FAR = 1.5  # times the least core latency: cores no longer share a cache


def paired_speedup(config: ExperimentConfig, pairs: Pairs, overall: bool = False) -> Estimate:
    """The speedup of the second over the first of each pair; unknown where there is no pair.

    It is the ratio of throughputs. For equal samples that is T(sequential) / T(w); in weak scaling, where w workers
    train on w times the baseline's samples, it is w T(1) / T(w) (Gustafson 1988). T is the time without slow spells of
    the machine (see undisturbed.py), or `overall`, all time counted. Between commands, what cores share (caches,
    memory) is faster or slower for minutes; so the interval of several has `measurement.drift`, too.
    """
    if not pairs:
        return UNKNOWN
    calm = [] if overall else _calm_pairs(pairs)
    found = _ratio(calm or _whole(pairs), stopped=config.measurement.is_adaptive).scaled(config.work_ratio)
    threads = pairs[0][0].threads  # of what the workers are compared with, which is one process
    if max(threads, config.busy_threads) > 1:
        found = found.widened(config.measurement.drift)
    if overall or (calm and far_latency(chain(*pairs)) is None):
        return found
    # What the undisturbed machine, or one with near cores, does is between what was seen and the ideal: that of
    # the workers, and that of the threads that they are compared with, which were disturbed, too.
    ends = (found.low, found.high, float(config.processes), *((1 / threads,) if threads > 1 or not calm else ()))
    return Estimate(found.value, min(ends), max(ends))


def ratio_of_times(pairs: Pairs, level: float = 0.95) -> Estimate:
    """Time of the first over time of the second of each pair: undisturbed, unless none or one was."""
    return _ratio(_calm_pairs(pairs) or _whole(pairs), level)


def ratios_of_times(pairs: Pairs) -> list[float]:
    """The same of each pair."""
    return [first / second for first, second in _calm_pairs(pairs) or _whole(pairs)]


def is_calm(pairs: Pairs) -> bool:
    """Whether enough pairs were undisturbed for some of their time to tell what the undisturbed machine does."""
    return bool(_calm_pairs(pairs))


def far_latency(trainings: Iterable[Training]) -> CoreLatency | None:
    """A latency at which cores exchanged data, where it was more than they need before each of these trainings."""
    latencies = [training.core_latency for training in trainings if training.core_latency is not None]
    far = all(latency.seconds > FAR * latency.least_seconds for latency in latencies)
    return latencies[-1] if latencies and far else None


def _calm_pairs(pairs: Pairs) -> list[tuple[float, float]]:
    """The undisturbed seconds of the pairs in which no training was disturbed for most of its time; of one, none."""
    sides = [first for first, _ in pairs], [second for _, second in pairs]
    by_steps = have_steps(sides[1], sequential=sides[0])
    seconds = zip(*(undisturbed_seconds(side, by_steps) for side in sides), strict=True)
    calm = [(first, second) for first, second in seconds if not math.isnan(first + second)]
    return calm if len(calm) >= min(2, len(pairs)) else []


def _whole(pairs: Pairs) -> list[tuple[float, float]]:
    """All seconds."""
    return [(first.seconds, second.seconds) for first, second in pairs]


def _ratio(seconds: Sequence[tuple[float, float]], level: float = 0.95, stopped: bool = False) -> Estimate:
    return paired_ratio([first for first, _ in seconds], [second for _, second in seconds], level, stopped)


def pairs_with_baseline(blocks: Sequence[Block]) -> list[tuple[Training, Training]]:
    """Baseline and candidate of each block that has both."""
    return [(block.baseline, block.candidate) for block in blocks if block.baseline is not None]


@dataclass(frozen=True)
class Baseline:
    """The trainings that a configuration's speedup is relative to."""

    name: str
    trainings: list[Training]
    speedup: Estimate


def over_baseline(members: Sequence[Member], singles: SingleWorkers) -> Baseline:
    """The speedup over the sequential trainings of the same blocks, else over the workers=1 jobs of the same series."""
    config = members[0].config
    blocks = kept_blocks(members)
    if pairs := pairs_with_baseline(blocks):
        baselines = [baseline for baseline, _ in pairs]
        return Baseline("sequential in the same blocks", baselines, paired_speedup(config, pairs))
    single = singles.matching(members[0])
    trainings = [block.candidate for block in kept_blocks(single)]
    if not single:
        return Baseline("none", trainings, UNKNOWN)
    if single[0].key == members[0].key:
        return Baseline("itself", trainings, Estimate(1.0, UNKNOWN.low, UNKNOWN.high))
    ratio = unpaired_ratio(calm_seconds(trainings), calm_seconds([block.candidate for block in blocks]))
    return Baseline(f"{single[0].config.strategy.name} workers=1 job", trainings, ratio.scaled(config.work_ratio))


@dataclass(frozen=True)
class BestSequential:
    """The sequential process with the best number of threads; None and unknown where it was not looked for."""

    threads: int | None
    seconds: float
    speedup: Estimate


def over_best_sequential(config: ExperimentConfig, blocks: Sequence[Block]) -> BestSequential:
    """The speedup over the best sequential process, which is what a user gains."""
    pairs = [(block.best_sequential or block.baseline, block.candidate) for block in blocks]
    known = [(sequential, candidate) for sequential, candidate in pairs if sequential is not None]
    if not config.measurement.best_sequential or not known or len(known) < len(pairs):
        return BestSequential(None, UNKNOWN.value, UNKNOWN)
    sequentials = [sequential for sequential, _ in known]
    by_steps = have_steps([candidate for _, candidate in known], sequentials)
    seconds = mean_seconds(sequentials, by_steps).value
    return BestSequential(known[0][0].threads, seconds, paired_speedup(config, known))


def of_independent_copies(config: ExperimentConfig, blocks: Sequence[Block]) -> Estimate:
    """The speedup of processes that exchange nothing, which the machine itself allows; unknown where not measured."""
    pairs = [
        (block.baseline, block.independent)
        for block in blocks
        if block.baseline is not None and block.independent is not None
    ]
    return paired_speedup(config, pairs)


@dataclass(frozen=True)
class SingleWorkers:
    """The good workers=1 jobs, found by all settings but the strategy."""

    members: dict[str, list[Member]]

    @classmethod
    def among(cls, good: Sequence[Member]) -> SingleWorkers:
        """Those of the given jobs."""
        members: dict[str, list[Member]] = {}
        for member in good:
            if member.config.workers == 1:
                members.setdefault(cls._key(member, member.config.strategy.name), []).append(member)
        return cls(members)

    def matching(self, member: Member) -> list[Member]:
        """Those of the same configuration and strategy, else of the sequential one."""
        names = (member.config.strategy.name, "sequential")
        return next((found for name in names if (found := self.members.get(self._key(member, name)))), [])

    @staticmethod
    def _key(member: Member, strategy: str) -> str:
        settings = {name: value for name, value in member.settings.items() if not name.startswith("strategy.")}
        return json.dumps([settings, member.config.data.size, strategy])


def mean_seconds(trainings: Sequence[Training], by_steps: bool = True) -> Estimate:
    """The time of one training, without slow spells: the geometric mean; unknown where there is none."""
    return geometric_mean(calm_seconds(trainings, by_steps)) if trainings else UNKNOWN


def calm_seconds(trainings: Sequence[Training], by_steps: bool = True) -> list[float]:
    """The times of those trainings that were not disturbed for most of their time; if that goes for none, of all."""
    if not trainings:
        return []
    seconds = undisturbed_seconds(trainings, by_steps and have_steps(trainings))
    return [value for value in seconds if not math.isnan(value)] or [training.seconds for training in trainings]


def kept_blocks(members: Sequence[Member]) -> list[Block]:
    """The blocks of all these jobs that count."""
    return [block for member in members for block in member.job.result.kept()]
