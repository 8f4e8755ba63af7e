"""Speedups: over the paired baseline, over the workers=1 jobs of a sweep, over the best sequential process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from dpexp.analysis.series import Member
from dpexp.analysis.stats import UNKNOWN, Estimate, geometric_mean, paired_ratio, unpaired_ratio
from dpexp.config.experiment import ExperimentConfig
from dpexp.results.schema import Block, Training


def paired_speedup(config: ExperimentConfig, pairs: Sequence[tuple[Training, Training]]) -> Estimate:
    """The speedup of the second over the first of each pair, which one block holds; unknown where there is no pair.

    It is the ratio of throughputs. For equal samples that is T(sequential) / T(w); in weak scaling, where w workers
    train on w times the baseline's samples, it is w T(1) / T(w) (Gustafson 1988).
    """
    return ratio_of_times(pairs, pilot=config.measurement.pilot).scaled(config.work_ratio)


def ratio_of_times(
    pairs: Sequence[tuple[Training, Training]], level: float = 0.95, pilot: int | None = None
) -> Estimate:
    """Time of the first over time of the second of each pair, which took turns; see stats.paired_ratio."""
    if not pairs:
        return UNKNOWN
    return paired_ratio(
        [first.seconds for first, _ in pairs], [second.seconds for _, second in pairs], level=level, pilot=pilot
    )


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
    ratio = unpaired_ratio([training.seconds for training in trainings], [block.candidate.seconds for block in blocks])
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
    seconds = geometric_mean([sequential.seconds for sequential, _ in known]).value
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


def kept_blocks(members: Sequence[Member]) -> list[Block]:
    """The blocks of all these jobs that count."""
    return [block for member in members for block in member.job.result.kept()]
