"""The one estimate: how many times the throughput of one arm another has, from the steps of their turns.

In a block, arms took turns of some tens of milliseconds, so that changes of the machine's speed met all of them. The
ratio of a block is that of their mean seconds a sample. Its variance follows from groups of consecutive rounds, each
left out in turn (the jackknife of batch means, which respects that neighbouring turns are alike). Blocks differ by
more, as each has new processes: a job's few blocks tell by how much only roughly, so their spread is moderated (Smyth
2004, "Linear models and empirical Bayes methods"): it counts beside that of PRIOR_FREEDOM blocks as they were expected.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dpexp.analysis import disturbance
from dpexp.analysis.intervals import UNKNOWN, Estimate, t_quantile
from dpexp.results.schema import Arm, Block

GROUPS = 12  # of consecutive rounds, at most
# What the data of one start, or of one command, can't show: standard deviations of the log ratio. Between starts of the
# same programs, and between commands minutes apart where several cores are compared, which share caches and memory.
START_DEVIATION, COMMAND_DEVIATION = 0.006, 0.005
PRIOR_FREEDOM = 6.0
UNKNOWN_DEVIATION = 0.1  # of a block with a single round
NO_LIMITS = (math.inf, math.inf)

Turns = Sequence[Sequence[float]]
"""The seconds of each step of each turn."""


@dataclass(frozen=True)
class LogRatio:
    """The log of a ratio, and its variance as far as its own data can tell."""

    log: float
    variance: float


def block_ratio(over: Arm, of: Arm, limits: tuple[float, float] = NO_LIMITS) -> LogRatio | None:
    """Seconds a sample of `over` over those of `of`; only steps up to the limits count, in seconds.

    None where an arm has none.
    """
    found = turns_ratio(over.turn_seconds, of.turn_seconds, limits)
    if found is None:
        return None
    return LogRatio(found.log + math.log(of.samples_per_step / over.samples_per_step), found.variance)


def turns_ratio(over: Turns, of: Turns, limits: tuple[float, float] = NO_LIMITS) -> LogRatio | None:
    """The same of seconds a step."""
    sides = [_grouped(turns, limit) for turns, limit in zip((over, of), limits, strict=True)]
    totals = [side.sum(1) for side in sides]  # of each side: seconds, steps
    if any(steps == 0 for _, steps in totals):
        return None
    lefts = [[total - group for group in side.T] for side, total in zip(sides, totals, strict=True)]
    if all(steps > 0 for left in lefts for _, steps in left):
        variance = _jackknife([_log_mean(first) - _log_mean(second) for first, second in zip(*lefts, strict=True)])
    else:  # an arm has all of its steps in one group
        variance = sum(_jackknife([_log_mean(one) for one in left if one[1] > 0]) for left in lefts)
    return LogRatio(_log_mean(totals[0]) - _log_mean(totals[1]), variance)


def block_seconds(arm: Arm, limit: float = math.inf) -> LogRatio | None:
    """Seconds of a step of one arm; None where it has no step up to the limit."""
    side = _grouped(arm.turn_seconds, limit)
    total = side.sum(1)
    if not total[1]:
        return None
    lefts = [total - group for group in side.T]
    return LogRatio(_log_mean(total), _jackknife([_log_mean(left) for left in lefts if left[1] > 0]))


def step_seconds(blocks: Sequence[Block], name: str, limit: float = math.inf) -> Pooled | None:
    """Seconds of a step of one arm over all blocks; None where none has it.

    No other arm took turns with it: what commands differ by is not seen in these blocks, and added.
    """
    found = [block_seconds(block.arms[name], limit) for block in blocks if name in block.arms]
    known = [one for one in found if one is not None]
    if not known:
        return None
    mean = pooled(known, START_DEVIATION)
    return dataclasses.replace(mean, variance=mean.variance + COMMAND_DEVIATION**2)


def _grouped(turns: Turns, limit: float) -> np.ndarray:
    """Seconds and number of the steps up to a limit, of each group of consecutive turns (2, groups)."""
    steps = np.concatenate([np.asarray(turn, dtype=float) for turn in turns])
    groups = np.arange(len(turns)) * min(GROUPS, len(turns)) // len(turns)
    of_steps = np.repeat(groups, [len(turn) for turn in turns])
    kept = steps <= limit
    return np.array([np.bincount(of_steps, values, groups[-1] + 1) for values in (np.where(kept, steps, 0.0), kept)])


def _log_mean(total: np.ndarray) -> float:
    return math.log(total[0] / total[1])


def _jackknife(logs: Sequence[float]) -> float:
    """The variance of a log from its values without each of the groups."""
    count = len(logs)
    if count < 2:
        return UNKNOWN_DEVIATION**2
    return (count - 1) / count * float(np.sum((np.asarray(logs) - np.mean(logs)) ** 2))


@dataclass(frozen=True)
class Pooled:
    """The mean of several log ratios. `misfit` is the sum of their squared deviations, each over what was expected."""

    log: float
    variance: float
    misfit: float
    freedom: float

    def less(self, other: Pooled) -> Pooled:
        """The log of the quotient of two independent ones, with the freedom of the one that has less."""
        freedom = min(self.freedom, other.freedom)
        return Pooled(self.log - other.log, self.variance + other.variance, 0.0, freedom)

    def estimate(self, level: float = 0.95) -> Estimate:
        """The ratio with its interval."""
        half = t_quantile(level, self.freedom) * math.sqrt(self.variance)
        return Estimate(math.exp(self.log), math.exp(self.log - half), math.exp(self.log + half))


def pooled(ratios: Sequence[LogRatio], deviation: float, usual_misfit: float = 1.0) -> Pooled:
    """Their mean, where they differ by a standard deviation that their own variances don't show.

    `usual_misfit` is a deviation's square over what is expected, as seen elsewhere, such as in other jobs of a sweep.
    """
    weights = np.array([1 / (one.variance + deviation**2) for one in ratios])
    logs = np.array([one.log for one in ratios])
    mean = float(weights @ logs / weights.sum())
    misfit = float(weights @ (logs - mean) ** 2)
    freedom = PRIOR_FREEDOM + len(ratios) - 1
    scale = (PRIOR_FREEDOM * usual_misfit + misfit) / freedom
    return Pooled(mean, scale / float(weights.sum()), misfit, freedom)


def usual_misfit(found: Sequence[Pooled]) -> float:
    """What the jobs of a sweep teach about each other: their mean misfit, as if there were one more, as expected."""
    freedom = sum(one.freedom - PRIOR_FREEDOM for one in found)
    return (PRIOR_FREEDOM + sum(one.misfit for one in found)) / (PRIOR_FREEDOM + freedom)


@dataclass(frozen=True)
class Comparison:
    """The throughput of one arm over that of another: as it is here, and without what others disturbed.

    `limits` are the most seconds of an undisturbed step of both arms.
    """

    here: Estimate = UNKNOWN
    undisturbed: Estimate | None = None
    limits: tuple[float, float] = NO_LIMITS
    disturbed_share: float = 0.0  # of the steps of the arm that was hit more
    blocks: Sequence[Block] = ()  # that `shown` comes from
    shown_log: Pooled | None = None  # of which `shown` is the estimate

    @property
    def shown(self) -> Estimate:
        """The undisturbed ratio, where there is one."""
        return self.here if self.undisturbed is None else self.undisturbed


def compare(jobs: Sequence[Sequence[Block]], over: str, of: str, level: float = 0.95, usual: float = 1.0) -> Comparison:
    """Of all blocks of jobs of the same configuration that have both arms; unknown where none has."""
    having = [[block for block in blocks if {over, of} <= block.arms.keys()] for blocks in jobs]
    having = [blocks for blocks in having if blocks]
    if not having:
        return Comparison()
    every = [block for blocks in having for block in blocks]
    here = _over_jobs(having, over, of, NO_LIMITS, usual)
    calm = disturbance.find(every, over, of)
    if calm is None:
        return Comparison(here.estimate(level), blocks=every, shown_log=here)
    kept = [[block for block in blocks if block in calm.blocks] for blocks in having]
    found = _over_jobs([blocks for blocks in kept if blocks], over, of, calm.limits, usual)
    shares = [
        disturbance.disturbed_share([block.arms[name] for block in every], limit)
        for name, limit in zip((over, of), calm.limits, strict=True)
    ]
    return Comparison(here.estimate(level), found.estimate(level), calm.limits, max(shares), calm.blocks, found)


def block_misfit(blocks: Sequence[Block], over: str, of: str) -> Pooled | None:
    """How much the blocks of one job differ; None where they don't have both arms."""
    found = [block_ratio(block.arms[over], block.arms[of]) for block in blocks if {over, of} <= block.arms.keys()]
    ratios = [one for one in found if one is not None]
    return pooled(ratios, START_DEVIATION) if ratios else None


def _over_jobs(
    jobs: Sequence[Sequence[Block]], over: str, of: str, limits: tuple[float, float], usual: float
) -> Pooled:
    """Blocks make a job's ratio, and jobs the ratio."""
    found = []
    for blocks in jobs:
        ratios = [block_ratio(block.arms[over], block.arms[of], limits) for block in blocks]
        found.append(pooled([one for one in ratios if one is not None], START_DEVIATION, usual))
    arms = [jobs[0][0].arms[name] for name in (over, of)]
    deviation = COMMAND_DEVIATION if max(len(arm.processes) * arm.threads for arm in arms) > 1 else 0.0
    every = pooled([LogRatio(one.log, one.variance) for one in found], deviation)
    return dataclasses.replace(every, freedom=every.freedom + sum(one.freedom - PRIOR_FREEDOM for one in found))
