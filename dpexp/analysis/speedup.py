"""Speedups: over the paired baseline, over the workers=1 jobs of a sweep, over the best sequential process."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from dpexp.analysis.intervals import UNKNOWN, Estimate
from dpexp.analysis.ratios import Comparison, compare, step_seconds
from dpexp.results.schema import BASELINE, BEST_SEQUENTIAL, CANDIDATE, INDEPENDENT, Block, Training
from dpexp.results.series import Member


def speedup_of(blocks: Sequence[Block]) -> Estimate:
    """Of one job over its paired baseline; unknown without one."""
    return compare([blocks], BASELINE, CANDIDATE).shown


@dataclass(frozen=True)
class Baseline:
    """What a configuration's speedup is relative to. The speedup is the ratio of throughputs.

    For equal samples that is T(sequential) / T(w); in weak scaling, where w workers train on w times the baseline's
    samples, it is w T(1) / T(w) (Gustafson 1988).
    """

    name: str
    comparison: Comparison
    blocks: list[Block]
    arm: str  # of these blocks
    trainings: list[Training]


def over_baseline(members: Sequence[Member], singles: SingleWorkers, usual_misfit: float) -> Baseline:
    """The speedup over the sequential arm of the same blocks, else over the workers=1 jobs of the same series."""
    jobs = [member.job.result.kept() for member in members]
    blocks = [block for job in jobs for block in job]
    if all(BASELINE in block.arms for block in blocks):
        found = compare(jobs, BASELINE, CANDIDATE, usual=usual_misfit)
        trainings = [one for member in members for one in member.job.result.trainings.get(BASELINE, [])]
        return Baseline("sequential in the same blocks", found, blocks, BASELINE, trainings)
    single = singles.matching(members[0])
    others = [block for member in single for block in member.job.result.kept()]
    trainings = [one for member in single for one in member.job.result.trainings.get(CANDIDATE, [])]
    if not single:
        return Baseline("none", Comparison(), [], CANDIDATE, trainings)
    if single[0].key == members[0].key:
        return Baseline("itself", Comparison(Estimate(1.0, math.nan, math.nan)), others, CANDIDATE, trainings)
    times = [step_seconds(side, CANDIDATE) for side in (others, blocks)]
    assert times[0] is not None
    assert times[1] is not None
    samples = [side[0].arms[CANDIDATE].samples_per_step for side in (others, blocks)]
    ratio = times[0].less(times[1]).estimate().scaled(samples[1] / samples[0])
    name = f"{single[0].config.names['strategy']} workers=1 job"
    return Baseline(name, Comparison(ratio), others, CANDIDATE, trainings)


@dataclass(frozen=True)
class BestSequential:
    """The sequential process with the best number of threads; None and unknown where it was not looked for."""

    threads: int | None = None
    seconds_per_sample: float = math.nan
    comparison: Comparison = field(default_factory=Comparison)


def over_best_sequential(members: Sequence[Member], usual_misfit: float) -> BestSequential:
    """The speedup over the best sequential process, which is what a user gains."""
    jobs = [member.job.result.kept() for member in members]
    blocks = [block for job in jobs for block in job]
    if not members[0].config.measurement.best_sequential:
        return BestSequential()
    arms = [name for name in (BASELINE, BEST_SEQUENTIAL) if all(name in block.arms for block in blocks)]
    if not arms:
        return BestSequential()
    arm = min(arms, key=lambda name: _seconds_per_sample(blocks, name))
    found = compare(jobs, arm, CANDIDATE, usual=usual_misfit)
    seconds = step_seconds(found.blocks, arm, found.limits[0])
    assert seconds is not None
    best = blocks[0].arms[arm]
    return BestSequential(best.threads, math.exp(seconds.log) / best.samples_per_step, found)


def _seconds_per_sample(blocks: Sequence[Block], arm: str) -> float:
    seconds = step_seconds(blocks, arm)
    assert seconds is not None
    return seconds.log - math.log(blocks[0].arms[arm].samples_per_step)


def of_independent_copies(members: Sequence[Member]) -> Estimate:
    """The speedup of processes that exchange nothing, which the machine itself allows; unknown where not measured."""
    jobs = [member.job.result.kept() for member in members]
    if not all(INDEPENDENT in block.arms for job in jobs for block in job):
        return UNKNOWN
    return compare(jobs, BASELINE, INDEPENDENT).shown


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
                members.setdefault(cls._key(member, member.config.names["strategy"]), []).append(member)
        return cls(members)

    def matching(self, member: Member) -> list[Member]:
        """Those of the same configuration and strategy, else of the sequential one."""
        names = (member.config.names["strategy"], "sequential")
        return next((found for name in names if (found := self.members.get(self._key(member, name)))), [])

    @staticmethod
    def _key(member: Member, strategy: str) -> str:
        settings = {name: value for name, value in member.settings.items() if not name.startswith("strategy.")}
        return json.dumps([settings, member.config.data.size, strategy])
