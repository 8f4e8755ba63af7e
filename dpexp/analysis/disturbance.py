"""Which steps were disturbed by others, and which are long by nature: what the steps themselves show.

On a shared machine, somebody else's work slows a core down for milliseconds to minutes, often without a trace in any
counter. A training has long steps of its own: validation, checkpoints, long batches, layers that are skipped, exchanges
that take as long as chance will have it. By their length these can't be told apart. But a disturbed step has disturbed
neighbours, while steps that are long by nature come one by one, or at the same step numbers whenever the program is
started. So long steps are left out only where they come in spells, and in no other way; and then of both arms.

An undisturbed step takes at most LONGER times as long as the fastest steps of all starts of its program. Where the rule
decides, the result must not depend on LONGER.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dpexp.results.schema import Arm, Block

FASTEST = 0.01  # this quantile of all steps of a program is its undisturbed step
LONGER = 1.15  # times that, at most, an undisturbed step takes
KINDS = (2.0, 8.0)  # steps that are longer by up to so many times are looked at apart: a slow core, a lost core, more
LEAST_SHARE = 0.02  # of the time, that a kind of long steps must take to matter
LIFT = 1.3  # how many times as often as any step the neighbour of a disturbed step is a long one, at least
SURE = 3.0  # standard deviations
REPEATED = 0.2  # correlation of long steps of the same numbers between starts, from which on they are nature
LEAST_CALM = 0.1  # of a start's steps that must be undisturbed; other starts don't count
LEAST_STARTS = 2
PLATEAU = 0.05  # LONGER moved by so much to both sides ...
MOST_CHANGE = 0.03  # ... may change the log ratio by so much


@dataclass(frozen=True)
class Undisturbed:
    """The most seconds of an undisturbed step of both arms, and the blocks that have enough of them."""

    limits: tuple[float, float]
    blocks: list[Block]


def disturbed_share(arms: Sequence[Arm], limit: float) -> float:
    """The share of all steps that take longer than `limit` seconds."""
    return float((np.concatenate([arm.step_seconds for arm in arms]) > limit).mean())


def find(blocks: Sequence[Block], over: str, of: str) -> Undisturbed | None:
    """What to compare where the machine was disturbed; None where nothing shows that long steps are no nature."""
    sides = [[block.arms[name] for block in blocks] for name in (over, of)]
    limits = (LONGER * fastest(sides[0]), LONGER * fastest(sides[1]))
    if not any(_matters(side, limit) for side, limit in zip(sides, limits, strict=True)):
        return None
    if not all(_in_spells(side, limit) for side, limit in zip(sides, limits, strict=True)):
        return None
    calm = [
        block
        for block, arms in zip(blocks, zip(*sides, strict=True), strict=True)
        if all(disturbed_share([arm], limit) <= 1 - LEAST_CALM for arm, limit in zip(arms, limits, strict=True))
    ]
    return Undisturbed(limits, calm) if len(calm) >= LEAST_STARTS else None


def fastest(arms: Sequence[Arm]) -> float:
    """The seconds of an undisturbed step."""
    return float(np.quantile(np.concatenate([arm.step_seconds for arm in arms]), FASTEST))


def _matters(arms: Sequence[Arm], limit: float) -> bool:
    """Whether long steps take enough time to change anything."""
    return any(share >= LEAST_SHARE for _, share in _kinds(arms, limit))


def _kinds(arms: Sequence[Arm], limit: float) -> Iterator[tuple[tuple[float, float], float]]:
    """Of each kind of long steps the bounds in seconds, and the share of all time."""
    steps = np.concatenate([arm.step_seconds for arm in arms])
    bounds = (limit, *(limit / LONGER * times for times in KINDS), math.inf)
    for low, high in itertools.pairwise(bounds):
        yield (low, high), float(steps[(steps > low) & (steps <= high)].sum() / steps.sum())


def _in_spells(arms: Sequence[Arm], limit: float) -> bool:
    """Whether long steps of each kind that matters come together, and not at the same numbers in each start."""
    for (low, high), share in _kinds(arms, limit):
        if share >= LEAST_SHARE and not _has_long_neighbours(arms, low, high, limit):
            return False
    return not _repeats(arms, limit)


def _has_long_neighbours(arms: Sequence[Arm], low: float, high: float, limit: float) -> bool:
    """Whether the step before a step of this kind is a long one more often than any step is."""
    kind, before, every = [], [], []
    for arm in arms:
        for turn in arm.turn_seconds:
            steps = np.asarray(turn)
            kind.append((steps[1:] > low) & (steps[1:] <= high))
            before.append(steps[:-1] > limit)
            every.append(steps > limit)
    chosen, long_before = np.concatenate(kind), np.concatenate(before)
    usual, count = float(np.concatenate(every).mean()), int(chosen.sum())
    if not count or usual == 1:
        return False
    found = float(long_before[chosen].mean())
    return found > usual + SURE * math.sqrt(usual * (1 - usual) / count) and _odds(found) > LIFT * _odds(usual)


def _odds(share: float) -> float:
    return share / (1 - share) if share < 1 else math.inf


def _repeats(arms: Sequence[Arm], limit: float) -> bool:
    """Whether steps of the same number are long together in different starts: then the work is like that."""
    marked = []
    for arm in arms:
        numbers = np.concatenate(
            [np.arange(first, first + len(turn)) for first, turn in zip(arm.first_steps, arm.turn_seconds, strict=True)]
        )
        long_ones = np.full(int(numbers[-1]) + 1, np.nan)
        long_ones[numbers] = arm.step_seconds > limit
        marked.append(long_ones)
    correlations, counts = [], []
    for number, first in enumerate(marked):
        for second in marked[number + 1 :]:
            shared = min(len(first), len(second))
            both = ~np.isnan(first[:shared]) & ~np.isnan(second[:shared])
            one, other = first[:shared][both], second[:shared][both]
            if both.sum() > 1 and one.std() and other.std():
                correlations.append(float(np.corrcoef(one, other)[0, 1]))
                counts.append(int(both.sum()))
    if not counts:
        return False
    mean = float(np.average(correlations, weights=counts))
    return mean > max(REPEATED, SURE / math.sqrt(sum(counts)))
