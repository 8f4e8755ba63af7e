"""Which steps did other programs disturb, and which are inherently long? Found from the step times alone.

Disturbed steps are clustered, whereas inherently long ones (validation, checkpoints, long batches) occur singly, at a
fixed interval, or with the same numbers in each block. See docs/method.md, "Overall and undisturbed".
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np

from dpexp.results.schema import Arm, Block

FASTEST_QUANTILE = 0.01  # this quantile of all steps of an arm is its undisturbed step
UNDISTURBED_RATIO = 1.15  # times as long: the limit for an undisturbed step ...
LIMIT_SHIFT = 0.05  # ... and if that limit is moved by this much in both directions, ...
MAX_CHANGE = 0.02  # ... the log ratio must change by no more than this
VERY_LONG_RATIO = 4.0  # times as long: no slow core explains such steps, so they must be clustered on their own
WINDOW_STEPS = 16  # steps, in which long steps are counted
MIN_DISPERSION = 1.5  # times the variance that their number in a window would have if each step were long independently
Z_LIMIT = 3.0  # standard deviations
MIN_SHARE = 0.05  # share of the time that long steps must take to matter
MAX_REPETITION = 0.2  # correlation between blocks of which steps are long; above it, they may be inherently long
SHIFTS, CHANCE_QUANTILE = 30, 0.95  # and it must exceed this quantile of the correlations between shifted numbers
MIN_UNDISTURBED_SHARE = 0.1  # share of a block's steps that must be undisturbed, else the block doesn't count
MIN_BLOCKS = 2


def disturbed_share(blocks: Sequence[Block], names: tuple[str, str], limits: tuple[float, float]) -> float:
    """Return the share of steps above their arm's limit, in seconds, in the arm where it is larger."""
    return max(
        float((np.concatenate([block.arms[name].all_step_seconds for block in blocks]) > limit).mean())
        for name, limit in zip(names, limits, strict=True)
    )


def find_undisturbed(
    blocks: Sequence[Block], baseline: str, candidate: str
) -> tuple[tuple[float, float], list[Block], float]:
    """Return the longest undisturbed step of both arms, in seconds, and the blocks with enough such steps.

    The third value is how much the log ratio depends on the limit. Without evidence of a disturbance, there are no
    blocks: then all time counts.
    """
    names = (baseline, candidate)
    of_both = [[block.arms[name] for block in blocks] for name in names]
    limits = (
        UNDISTURBED_RATIO * fastest_step_seconds(of_both[0]),
        UNDISTURBED_RATIO * fastest_step_seconds(of_both[1]),
    )
    slowed = [(arms, limit) for arms, limit in zip(of_both, limits, strict=True) if _matters(arms, limit)]
    if not slowed or not all(_are_disturbed(arms, limit) for arms, limit in slowed):
        return limits, [], 0.0
    kept = [block for block in blocks if disturbed_share([block], names, limits) <= 1 - MIN_UNDISTURBED_SHARE]
    sensitivity = _limit_sensitivity(kept, names, limits) if len(kept) >= MIN_BLOCKS else math.inf
    return (limits, kept, sensitivity) if sensitivity <= MAX_CHANGE else (limits, [], 0.0)


def fastest_step_seconds(arms: Sequence[Arm]) -> float:
    """The time of the fastest steps, which are undisturbed."""
    return float(np.quantile(np.concatenate([arm.all_step_seconds for arm in arms]), FASTEST_QUANTILE))


def _limit_sensitivity(blocks: Sequence[Block], names: tuple[str, str], limits: tuple[float, float]) -> float:
    """Return how much the log ratio changes if the limits are moved."""
    logs = []
    for moved in (UNDISTURBED_RATIO - LIMIT_SHIFT, UNDISTURBED_RATIO + LIMIT_SHIFT):
        means = []
        for name, limit in zip(names, limits, strict=True):
            steps = np.concatenate([block.arms[name].all_step_seconds for block in blocks])
            undisturbed = steps[steps <= limit * moved / UNDISTURBED_RATIO]
            if not len(undisturbed):
                return math.inf
            means.append(undisturbed.mean())
        logs.append(math.log(means[0] / means[1]))
    return abs(logs[1] - logs[0])


def _matters(arms: Sequence[Arm], limit: float) -> bool:
    """Whether the steps above the limit take enough time to change the result."""
    steps = np.concatenate([arm.all_step_seconds for arm in arms])
    return float(steps[steps > limit].sum()) > MIN_SHARE * float(steps.sum())


def _are_disturbed(arms: Sequence[Arm], limit: float) -> bool:
    """Whether long steps are clustered, much longer ones too, and don't repeat between blocks."""
    very_long_limit = limit / UNDISTURBED_RATIO * VERY_LONG_RATIO
    if not _is_clustered(arms, limit) or (_matters(arms, very_long_limit) and not _is_clustered(arms, very_long_limit)):
        return False
    return not _repeats_in_blocks(arms, limit)


def _is_clustered(arms: Sequence[Arm], limit: float) -> bool:
    """Whether steps above the limit are clustered in windows (index of dispersion, against that of a binomial)."""
    windows = [
        window
        for arm in arms
        for turn in arm.turns
        for window in np.array_split(np.asarray(turn) > limit, max(1, round(len(turn) / WINDOW_STEPS)))
    ]
    count, size = np.array([[window.sum(), len(window)] for window in windows]).T  # long steps, all steps
    share = count.sum() / size.sum()
    if share == 1:
        return False
    dispersion = float(((count - size * share) ** 2 / (size * share * (1 - share))).mean())
    return dispersion > max(MIN_DISPERSION, 1 + Z_LIMIT * math.sqrt(2 / len(count)))


def _repeats_in_blocks(arms: Sequence[Arm], limit: float) -> bool:
    """Whether the same step numbers are long in different blocks: then the steps are inherently long.

    Clusters correlate by chance, too: how much, correlations between shifted step numbers show.
    """
    ends = [first + len(turn) for arm in arms for first, turn in zip(arm.first_steps, arm.turns, strict=True)]
    is_long = np.full((len(arms), max(ends)), np.nan)  # by block and step number; NaN where it was not timed
    for in_block, arm in zip(is_long, arms, strict=True):
        for first, turn in zip(arm.first_steps, arm.turns, strict=True):
            in_block[first : first + len(turn)] = np.asarray(turn) > limit
    correlation = _correlation(is_long, 0)
    if correlation <= MAX_REPETITION:
        return False
    shifts = np.unique(np.linspace(1, is_long.shape[1] - 1, SHIFTS, dtype=int))
    return correlation > float(np.quantile([_correlation(is_long, shift) for shift in shifts], CHANCE_QUANTILE))


def _correlation(is_long: np.ndarray, shift: int) -> float:
    """Return the mean correlation of two blocks, the second shifted by some steps, over the steps timed in both."""
    correlations, counts = [0.0], [1e-9]  # 0 without such steps
    for block, another in itertools.combinations(is_long, 2):
        shifted = np.roll(another, shift)
        timed = ~np.isnan(block) & ~np.isnan(shifted)
        if timed.any() and block[timed].std() and shifted[timed].std():
            correlations.append(float(np.corrcoef(block[timed], shifted[timed])[0, 1]))
            counts.append(timed.sum())
    return float(np.average(correlations, weights=counts))
