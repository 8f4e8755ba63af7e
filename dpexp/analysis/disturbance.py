"""Which steps were disturbed by others, and which are long by nature: what the steps themselves show.

On a shared machine, somebody else's work slows a core down for milliseconds to minutes, often without a trace in any
counter. A training has long steps of its own: validation, checkpoints, long batches, layers that are skipped, exchanges
that take as long as chance will have it. By their length these can't be told apart. But disturbed steps come in spells,
while steps that are long by nature come one by one, in a fixed rhythm, or at the same numbers whenever the program is
started. So long steps are left out only where they come in spells, and in no other way; and then of both arms.

An undisturbed step takes at most LONGER times as long as the fastest steps of all starts of its program. Where the
ratio depends on that limit, there is no plateau of undisturbed steps, and all time counts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from dpexp.results.schema import Arm, Block

FASTEST = 0.01  # this quantile of all steps of a program is its undisturbed step
LONGER = 1.15  # times that, at most, an undisturbed step takes ...
PLATEAU = 0.05  # ... and if that limit is moved by so much to both sides, ...
MOST_CHANGE = 0.02  # ... the log ratio changes by no more
MUCH_LONGER = 4.0  # times as long: more than a slow core explains, so these have to come in spells by themselves
WINDOW = 16  # steps, among which the long ones of a spell gather
CLUSTERED = 1.5  # times the variance of their number in a window, if steps were long independently of each other
SURE = 3.0  # standard deviations
LEAST_SHARE = 0.05  # of the time, that long steps must take to matter
REPEATED = 0.2  # correlation of long steps of the same numbers between starts, from which on they are nature
LEAST_CALM = 0.1  # of a start's steps that must be undisturbed; other starts don't count
LEAST_STARTS = 2


def disturbed_share(arms: Sequence[Arm], limit: float) -> float:
    """The share of all steps that take longer than `limit` seconds."""
    return float((np.concatenate([arm.step_seconds for arm in arms]) > limit).mean())


def find_undisturbed(blocks: Sequence[Block], over: str, of: str) -> tuple[tuple[float, float], list[Block]]:
    """The most seconds of an undisturbed step of both arms, and the blocks that have enough of them.

    There are no blocks where nothing shows that long steps are no nature: then all time counts.
    """
    sides = [[block.arms[name] for block in blocks] for name in (over, of)]
    limits = (LONGER * fastest_step_seconds(sides[0]), LONGER * fastest_step_seconds(sides[1]))
    long_sides = [(arms, limit) for arms, limit in zip(sides, limits, strict=True) if _matters(arms, limit)]
    if not long_sides or not all(_in_spells(arms, limit) for arms, limit in long_sides):
        return limits, []
    calm = [
        block
        for block in blocks
        if all(
            disturbed_share([block.arms[name]], limit) <= 1 - LEAST_CALM
            for name, limit in zip((over, of), limits, strict=True)
        )
    ]
    if len(calm) < LEAST_STARTS or _change(calm, over, of, limits) > MOST_CHANGE:
        return limits, []
    return limits, calm


def fastest_step_seconds(arms: Sequence[Arm]) -> float:
    """The seconds of an undisturbed step."""
    return float(np.quantile(np.concatenate([arm.step_seconds for arm in arms]), FASTEST))


def _change(blocks: Sequence[Block], over: str, of: str, limits: tuple[float, float]) -> float:
    """By how much the log ratio changes where the limits are moved."""
    logs = []
    for moved in (LONGER - PLATEAU, LONGER + PLATEAU):
        means = []
        for name, limit in zip((over, of), limits, strict=True):
            steps = np.concatenate([block.arms[name].step_seconds for block in blocks])
            short = steps[steps <= limit * moved / LONGER]
            if not len(short):
                return math.inf
            means.append(short.mean())
        logs.append(math.log(means[0] / means[1]))
    return abs(logs[1] - logs[0])


def _matters(arms: Sequence[Arm], limit: float) -> bool:
    """Whether steps longer than that take enough time to change anything."""
    steps = np.concatenate([arm.step_seconds for arm in arms])
    return float(steps[steps > limit].sum()) > LEAST_SHARE * float(steps.sum())


def _in_spells(arms: Sequence[Arm], limit: float) -> bool:
    """Whether long steps come in spells, the much longer ones by themselves, and not at the same numbers each time."""
    much = limit / LONGER * MUCH_LONGER
    if not _is_clustered(arms, limit) or (_matters(arms, much) and not _is_clustered(arms, much)):
        return False
    return not _repeats(arms, limit)


def _is_clustered(arms: Sequence[Arm], limit: float) -> bool:
    """Whether steps above the limit gather in some windows (index of dispersion, against that of a binomial)."""
    windows = [
        window
        for arm in arms
        for turn in arm.turn_seconds
        for window in np.array_split(np.asarray(turn) > limit, max(1, round(len(turn) / WINDOW)))
    ]
    number, size = np.array([[window.sum(), len(window)] for window in windows]).T
    share = number.sum() / size.sum()
    if share == 1:
        return False
    dispersion = float(((number - size * share) ** 2 / (size * share * (1 - share))).mean())
    return dispersion > max(CLUSTERED, 1 + SURE * math.sqrt(2 / len(number)))


def _repeats(arms: Sequence[Arm], limit: float) -> bool:
    """Whether steps of the same number are long together in different starts: then the work is like that."""
    most = max(first + len(turn) for arm in arms for first, turn in zip(arm.first_steps, arm.turn_seconds, strict=True))
    starts = np.full((len(arms), most), np.nan)  # by number, whether it was long; NaN where it was not timed
    for start, arm in zip(starts, arms, strict=True):
        for first, turn in zip(arm.first_steps, arm.turn_seconds, strict=True):
            start[first : first + len(turn)] = np.asarray(turn) > limit
    correlations, counts = [], []
    for one, other in itertools.combinations(starts, 2):
        both = ~np.isnan(one) & ~np.isnan(other)
        if both.sum() > 1 and one[both].std() and other[both].std():
            correlations.append(np.corrcoef(one[both], other[both])[0, 1])
            counts.append(int(both.sum()))
    if not counts:
        return False
    return float(np.average(correlations, weights=counts)) > max(REPEATED, SURE / math.sqrt(sum(counts)))
