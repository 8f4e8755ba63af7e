"""How every ratio is estimated: the throughput of one arm over that of another, from the steps of their turns.

In a block, arms took turns of 30 to 120 milliseconds, so changes of the machine's speed affected all of them. The
ratio of a block is that of their mean seconds per sample. Its variance follows from how far each group of consecutive
rounds shifts it, and from the correlation of neighbouring groups, both over all blocks. Blocks differ by more, as each
has new processes: a job's few blocks show this spread only roughly, so it is moderated (Smyth 2004, "Linear
models and empirical Bayes methods"): it is combined with PRIOR_DOF blocks of the expected spread. A block's
weight depends on its number of steps, not on their variance, else undisturbed blocks would count more than others.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dpexp.analysis import disturbance
from dpexp.analysis.estimate import UNKNOWN, Estimate, from_log, t_quantile
from dpexp.results.schema import Block

GROUPS = 20  # at most this many groups of consecutive rounds
MAX_CORRELATION = 0.9  # correlation of neighbouring groups
# Standard deviations of the log ratio, not visible within one block or command: between blocks of the same job; and
# between commands that run minutes apart, if several cores are compared, as cores share resources.
BLOCK_STD, COMMAND_STD = 0.006, 0.005
PRIOR_DOF = 6.0
SINGLE_ROUND_STD = 0.1  # assumed for a block with a single round
Turns = Sequence[Sequence[float]]
"""The seconds of each step of each turn."""
Limits = tuple[float, float]
"""The seconds of the longest step that counts, of the baseline and of the candidate."""
NO_LIMITS: Limits = (math.inf, math.inf)


@dataclass(frozen=True)
class LogEstimate:
    """The log of a ratio, and how far each group of consecutive rounds shifts it."""

    log: float
    shifts: np.ndarray
    steps: float  # number of steps per arm
    groups: int  # number of groups that have steps

    @property
    def variance(self) -> float:
        """The variance of the log, from its own data."""
        return variance_per_step([self])[0] / self.steps


@dataclass(frozen=True)
class PooledLog:
    """The mean of log estimates. `chi_square` is the sum of squared deviations, each over its expected value."""

    log: float
    variance: float
    chi_square: float
    count: int
    dof: float

    def estimate(self, level: float = 0.95) -> Estimate:
        """The ratio with its interval."""
        return from_log(self.log, t_quantile(level, self.dof) * math.sqrt(self.variance))


def variance_per_step(estimates: Sequence[LogEstimate]) -> tuple[float, float]:
    """Return the variance of the log for a single step, from the estimates of some blocks, and its degrees of freedom.

    Over n steps, the variance is divided by n. Disturbances may be longer than a group: correlated neighbours reduce
    the effective number of groups.
    """
    known = [block for block in estimates if block.groups > 1]
    if not known:
        return SINGLE_ROUND_STD**2 * max(block.steps for block in estimates), 1.0
    squares = [float(block.shifts @ block.shifts) for block in known]
    products = sum(float(block.shifts[1:] @ block.shifts[:-1]) for block in known)
    groups = sum(block.groups for block in known)
    # Shifts add up to 0, which makes the correlation slightly negative.
    correlation = min(max(0.0, products / (sum(squares) or 1.0) + len(known) / groups), MAX_CORRELATION)
    effective_share = (1 - correlation) / (1 + correlation)
    effective = [max(2.0, block.groups * effective_share) for block in known]  # the mean uses up one degree of freedom
    per_step = [
        square * count / (count - 1) * block.steps
        for square, count, block in zip(squares, effective, known, strict=True)
    ]
    return float(np.mean(per_step)) / effective_share, groups * effective_share


def estimate_turns_ratio(baseline: Turns, candidate: Turns, limits: Limits = NO_LIMITS) -> LogEstimate | None:
    """Return the ratio of the seconds of a step: `baseline` divided by `candidate`; None if an arm has no steps.

    Only steps up to the limits, in seconds, count.
    """
    first, second = estimate_log_mean(baseline, limits[0]), estimate_log_mean(candidate, limits[1])
    if first is None or second is None:
        return None
    steps = 2 / (1 / first.steps + 1 / second.steps)
    return LogEstimate(first.log - second.log, first.shifts - second.shifts, steps, min(first.groups, second.groups))


def estimate_log_mean(turns: Turns, limit: float = math.inf) -> LogEstimate | None:
    """Return the log of an arm's seconds per step; None if it has no step up to the limit."""
    times = np.concatenate([np.asarray(turn, dtype=float) for turn in turns])
    groups = np.arange(len(turns)) * min(GROUPS, len(turns)) // len(turns)
    group_of_step = np.repeat(groups, [len(turn) for turn in turns])
    kept = times <= limit
    seconds, steps = (
        np.bincount(group_of_step, values, groups[-1] + 1) for values in (np.where(kept, times, 0.0), kept)
    )
    if not steps.sum():
        return None
    mean = seconds.sum() / steps.sum()
    shifts = (seconds - mean * steps) / seconds.sum()
    return LogEstimate(math.log(mean), shifts, float(steps.sum()), int(np.count_nonzero(steps)))


def pool_step_seconds(blocks: Sequence[Block], name: str, limit: float = math.inf) -> PooledLog:
    """Return the seconds of a step of one arm over all blocks, each of which has the arm.

    No other arm took turns with it: these blocks can't show how commands differ, so that variance is added.
    """
    mean = pool_blocks([estimate_log_mean(block.arms[name].turns, limit) for block in blocks])
    assert mean is not None
    return dataclasses.replace(mean, variance=mean.variance + COMMAND_STD**2)


def pool_blocks(estimates: Sequence[LogEstimate | None], spread_ratio: float = 1.0) -> PooledLog | None:
    """Return the mean of the blocks of a job, whose processes differ by more than their rounds show.

    `spread_ratio` is the ratio of observed to expected squared deviations in all jobs of the sweep.
    """
    known = [block for block in estimates if block is not None]
    if not known:
        return None
    variance, dof = variance_per_step(known)
    within = np.array([variance / block.steps for block in known])
    pooled = _pool([block.log for block in known], within, BLOCK_STD, spread_ratio)
    share = float(within.mean() / (within.mean() + BLOCK_STD**2))  # share of the variance that is visible in rounds
    return dataclasses.replace(pooled, dof=1 / (1 / pooled.dof + share**2 / dof))


def pool_jobs(jobs: Sequence[PooledLog], deviation: float) -> PooledLog:
    """Return the mean of jobs of the same configuration."""
    within = np.full(len(jobs), np.mean([job.variance for job in jobs]))
    pooled = _pool([job.log for job in jobs], within, deviation, 1.0)
    return dataclasses.replace(pooled, dof=sum(job.dof for job in jobs))


def _pool(logs: Sequence[float], within: np.ndarray, deviation: float, spread_ratio: float) -> PooledLog:
    """Return the mean of logs that differ by a standard deviation in addition to their own variances."""
    weights, values = 1 / (within + deviation**2), np.array(logs)
    mean = float(weights @ values / weights.sum())
    chi_square = float(weights @ (values - mean) ** 2)
    dof = PRIOR_DOF + len(logs) - 1
    scale = (PRIOR_DOF * spread_ratio + chi_square) / dof
    return PooledLog(mean, scale / float(weights.sum()), chi_square, len(logs), dof)


def find_spread_ratio(jobs: Sequence[PooledLog]) -> float:
    """Return the `spread_ratio` of the jobs of a sweep, moderated by PRIOR_DOF blocks of the expected spread."""
    return (PRIOR_DOF + sum(job.chi_square for job in jobs)) / (PRIOR_DOF + sum(job.count - 1 for job in jobs))


@dataclass(frozen=True)
class Comparison:
    """The throughput of one arm over that of another: overall, and undisturbed if there is evidence of disturbance.

    `limits` are the seconds of the longest undisturbed step, of the baseline and of the candidate.
    """

    overall: Estimate = UNKNOWN
    undisturbed: Estimate | None = None
    limits: Limits = NO_LIMITS
    disturbed_share: float = 0.0  # share of disturbed steps, in the arm with more of them
    blocks: Sequence[Block] = ()  # the blocks that `shown` is computed from

    @property
    def shown(self) -> Estimate:
        """The undisturbed ratio if there is one, else the overall ratio."""
        return self.overall if self.undisturbed is None else self.undisturbed


def compare(
    jobs: Sequence[Sequence[Block]], baseline: str, candidate: str, *, spread_ratio: float = 1.0, level: float = 0.95
) -> Comparison:
    """Return the throughput of `candidate` over that of `baseline`, from all blocks of jobs of one configuration.

    It is unknown if no block has both arms.
    """
    blocks_by_job = [[block for block in blocks if {baseline, candidate} <= block.arms.keys()] for blocks in jobs]
    all_blocks = [block for blocks in blocks_by_job for block in blocks]
    if not all_blocks:
        return Comparison()
    overall = _pool_over_jobs(blocks_by_job, baseline, candidate, NO_LIMITS, spread_ratio)
    limits, blocks, sensitivity = disturbance.find_undisturbed(all_blocks, baseline, candidate)
    if not blocks:
        return Comparison(overall.estimate(level), blocks=all_blocks)
    kept = [[block for block in of_job if block in blocks] for of_job in blocks_by_job]
    undisturbed = _pool_over_jobs(kept, baseline, candidate, limits, spread_ratio)
    # The true limit may be anywhere in the tried range (uniform: variance = width^2 / 12).
    undisturbed = dataclasses.replace(undisturbed, variance=undisturbed.variance + sensitivity**2 / 12)
    share = disturbance.disturbed_share(all_blocks, (baseline, candidate), limits)
    return Comparison(overall.estimate(level), undisturbed.estimate(level), limits, share, blocks)


def _pool_over_jobs(
    jobs: Sequence[Sequence[Block]], baseline: str, candidate: str, limits: Limits, spread_ratio: float
) -> PooledLog:
    """Combine blocks into each job's ratio of seconds per step, and jobs into one ratio of seconds per sample."""
    ratios = [estimate_job_ratio(blocks, baseline, candidate, limits, spread_ratio) for blocks in jobs]
    first, second = (next(block for blocks in jobs for block in blocks).arms[name] for name in (baseline, candidate))
    several = max(len(arm.processes) * arm.threads for arm in (first, second)) > 1
    pooled = pool_jobs([ratio for ratio in ratios if ratio is not None], COMMAND_STD if several else 0.0)
    return dataclasses.replace(pooled, log=pooled.log + math.log(second.samples_per_step / first.samples_per_step))


def estimate_job_ratio(
    blocks: Sequence[Block],
    baseline: str,
    candidate: str,
    limits: Limits = NO_LIMITS,
    spread_ratio: float = 1.0,
) -> PooledLog | None:
    """Return the ratio of the seconds of a step of two arms in the blocks of one job; None if no block has both."""
    both = [block.arms for block in blocks if {baseline, candidate} <= block.arms.keys()]
    ratios = [estimate_turns_ratio(arms[baseline].turns, arms[candidate].turns, limits) for arms in both]
    return pool_blocks(ratios, spread_ratio)
