"""The time of a training without the machine's slow spells: by its steps where they tell (calm_steps), else by turns.

On a shared machine some turns are slowed down by others, often by half, and often for a second or more. They form a
tail, while undisturbed turns lie close together. Where most of them lie, and how far they reach to the fast side, which
no neighbour causes, tells how far they may reach to the slow side. `tests/traces` has turns recorded on a quiet and on
a disturbed machine, and `tests/test_undisturbed.py` compares this with means and medians on them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from dpexp.analysis import calm_steps
from dpexp.results.schema import Training

SPREADS = 3.0  # slower than the level of undisturbed turns by more is disturbed ...
LEAST_SPREAD = 0.01  # ... where a spread is at least so large, as a share of the level
MOST_DISTURBED = 0.75  # of a training's turns; with more of them it doesn't count

Turns = Sequence[float]
"""The seconds of each turn of one training."""


def have_steps(trainings: Sequence[Training], sequential: Sequence[Training] = ()) -> bool:
    """Whether these trainings can be compared by their steps, as far as those of one process tell."""
    steps = [training.steps for training in (*sequential, *trainings)]
    if None in steps:
        return False
    return not calm_steps.differ_by_nature([one for one in steps[: len(sequential)] if one is not None])


def undisturbed_seconds(trainings: Sequence[Training], by_steps: bool) -> list[float]:
    """Of each training the time that it takes when nothing disturbs it; NaN where it was disturbed for too long."""
    if by_steps:
        return calm_steps.undisturbed_seconds([training.steps for training in trainings if training.steps is not None])
    return seconds_by_turns([training.turn_seconds for training in trainings])


def phases_of_workers(trainings: Sequence[Training], by_steps: bool) -> list[list[dict[str, float]]]:
    """The seconds of each worker by phase, of each training; `by_steps`, of one that stands for them all."""
    if not trainings or not by_steps:
        return [training.phase_seconds for training in trainings]
    steps = [training.steps for training in trainings if training.steps is not None]
    return [[calm_steps.phase_seconds(steps)] * steps[0].workers]


def disturbed_share(trainings: Sequence[Training], by_steps: bool) -> float:
    """The share of all steps, or turns, that slow spells hit."""
    if by_steps:
        return calm_steps.disturbed_share([training.steps for training in trainings if training.steps is not None])
    return disturbed_share_by_turns([training.turn_seconds for training in trainings])


def seconds_by_turns(trainings: Sequence[Turns]) -> list[float]:
    """Of each training the time that it takes when no turn is disturbed; NaN where too many were."""
    found = []
    for turns, calm in zip(trainings, _calm(trainings), strict=True):
        enough = calm.mean() >= 1 - MOST_DISTURBED
        found.append(float(np.asarray(turns)[calm].mean() * len(turns)) if enough else math.nan)
    return found


def disturbed_share_by_turns(trainings: Sequence[Turns]) -> float:
    """The share of all turns that were disturbed."""
    calm = _calm(trainings)
    return 1 - sum(int(turns.sum()) for turns in calm) / sum(map(len, calm))


def _calm(trainings: Sequence[Turns]) -> list[np.ndarray]:
    """Of each training which of its turns were not disturbed. Turns of all trainings are compared by their share."""
    logs = [np.log(np.asarray(turns, dtype=float) * len(turns)) for turns in trainings]
    pooled = np.sort(np.concatenate(logs))
    level = _densest_half(pooled).mean()
    spread = 1.4826 * float(np.median(level - pooled[pooled <= level]))  # as of a normal distribution
    limit = level + SPREADS * max(spread, LEAST_SPREAD)
    return [turns <= limit for turns in logs]


def _densest_half(values: np.ndarray) -> np.ndarray:
    """The shortest interval that holds half of the sorted values (the shorth of Andrews et al. 1972)."""
    half = len(values) // 2 + 1
    start = int((values[half - 1 :] - values[: len(values) - half + 1]).argmin())
    return values[start : start + half]
