"""The time of a training from its calm steps: those in which no worker's core was slowed down.

On a virtual machine, a core's other hyperthread may belong to somebody else, whose bursts of milliseconds halve its
speed, for minutes on end and without a trace in any counter. With several workers, each burst on any core slows the
step of all. But nobody makes a computation faster: its shortest times are those of an undisturbed core, and a step is
calm where its slowest worker computed for hardly longer than that. (Where computations spread by some percent by
nature, this cuts off more of one process than of several workers, whose slowest are alike: speedups read a bit low.)

A program that takes turns with a worker on its core delays it between computations, which take as long as ever. Then
the others wait for it, and the step takes longer by the half of a computation or more. So the rest of a calm step took
hardly longer than the least, either. How much is "hardly" follows the spread of the shortest rests; where even the
calmest training has many longer ones, and all have about as many, rests differ by nature, and all count. Between these,
the longest ones of a skewed distribution are lost: the speedup with all time counted then shows the difference.

`tests/traces` has the steps of 22 commands on such machines, and `tests/test_calm_steps.py` what this makes of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from dpexp.phases import COMPUTE, PHASES
from dpexp.results.schema import StepTimes

BIN, REST_BIN = 1.01, 1.05  # from one bin to the next: by compute time, and by the time of the rest of the step
FASTEST = 0.01  # this quantile of all steps is the computation of an undisturbed core ...
LONGER = 1.15  # ... and steps that compute for up to so many times as long are calm ...
REST = tuple(name for name in PHASES if name != PHASES[COMPUTE])
REST_LONGER = 0.1  # ... if the rest is longer than its own quantile by no more than this share of the step, or ...
REST_SPREADS = 5.0  # ... so many times the distance to the next quantile: for normal times, 3 deviations from the mean
NEXT = 0.1  # which is this
SHORTEST = 1e-7  # seconds: no phase is measured more exactly
LEAST_CALM = 0.1  # of a training's steps; with fewer of them it doesn't count
USUAL, REST_USUAL = 0.5, 0.9  # of the steps of the calmest training; with fewer, and ...
ALIKE = 0.5  # times as many in the least calm one, computations differ by nature: neighbours come and go


def binned(ranks: np.ndarray, updates: int, partial_updates: int, partial_seconds: float) -> StepTimes:
    """Steps by the time that their slowest worker computed, and by the mean of all other time of the workers.

    `ranks` (workers, steps, phases) are seconds.
    """
    compute, rest = ranks[:, :, COMPUTE].max(0), (ranks.sum(2) - ranks[:, :, COMPUTE]).mean(0)
    totals = ranks.sum(0)
    keys = np.stack([_bin(compute, BIN), _bin(rest, REST_BIN)])
    bins, places = np.unique(keys, axis=1, return_inverse=True)
    places = places.reshape(-1)  # numpy 2.0 returns another shape
    return StepTimes(
        updates=updates,
        partial_updates=partial_updates,
        partial_seconds=partial_seconds,
        workers=len(ranks),
        compute_seconds=[float(f"{middle:.4g}") for middle in BIN ** (bins[0] + 0.5)],
        counts=np.bincount(places).tolist(),
        phases={
            name: [float(f"{total:.5g}") for total in np.bincount(places, totals[:, phase])]
            for phase, name in enumerate(PHASES)
        },
    )


def _bin(seconds: np.ndarray, width: float) -> np.ndarray:
    """The number of the bin that each value falls into."""
    found: np.ndarray = np.floor(np.log(np.maximum(seconds, SHORTEST)) / math.log(width))
    return found


def undisturbed_seconds(trainings: Sequence[StepTimes]) -> list[float]:
    """Of each training the time that it takes when all steps are calm; NaN where too few were."""
    found = []
    partial = min(steps.partial_seconds for steps in trainings)
    for steps, calm in zip(trainings, _calm(trainings), strict=True):
        enough = np.asarray(steps.counts)[calm].sum() >= LEAST_CALM * sum(steps.counts)
        seconds = sum(_mean_phases([steps], [calm]).values()) / steps.workers if enough else math.nan
        found.append(steps.updates * seconds + steps.partial_updates * partial)
    return found


def phase_seconds(trainings: Sequence[StepTimes]) -> dict[str, float]:
    """The time of a training in which all steps are calm, by phase, as the mean over its workers.

    Steps of partial batches count as if their phases had the same shares.
    """
    first, means = trainings[0], _mean_phases(trainings, _calm(trainings))
    partial = min(steps.partial_seconds for steps in trainings)
    updates = first.updates + first.partial_updates * partial * first.workers / sum(means.values())
    return {name: updates * seconds / first.workers for name, seconds in means.items()}


def differ_by_nature(trainings: Sequence[StepTimes]) -> bool:
    """Whether the model itself makes computations differ, and not others."""
    every = [np.ones(len(steps.counts), bool) for steps in trainings]
    return bool(trainings) and _by_nature(trainings, _computed_calmly(trainings), every, USUAL)


def _by_nature(
    trainings: Sequence[StepTimes], kept: Sequence[np.ndarray], among: Sequence[np.ndarray], usual: float
) -> bool:
    """Whether all trainings keep few of the steps `among` which they are chosen, and all alike: steps are like that."""
    counts = [np.asarray(steps.counts) for steps in trainings]
    shares = [
        number[chosen & possible].sum() / number[possible].sum()
        for number, chosen, possible in zip(counts, kept, among, strict=True)
        if number[possible].any()
    ]
    return bool(max(shares) < usual and min(shares) >= ALIKE * max(shares))


def disturbed_share(trainings: Sequence[StepTimes]) -> float:
    """The share of all steps that were not calm."""
    calm = sum(np.asarray(steps.counts)[kept].sum() for steps, kept in zip(trainings, _calm(trainings), strict=True))
    return 1 - float(calm) / sum(sum(steps.counts) for steps in trainings)


def slowest_of(workers: int, trainings: Sequence[StepTimes]) -> tuple[float, float]:
    """How long the slowest of so many workers computes in a step, if each draws from the steps of these trainings.

    As multiples of the mean of calm steps: from calm steps alone, and from all steps. (Where steps differ by nature, of
    the mean of all, and twice the latter.) The trainings are of one process. The mean of the greatest of n independent
    draws is the sum of values times the difference of the n-th powers of the distribution function.
    """
    every = [np.ones(len(steps.counts), bool) for steps in trainings]
    calm = every if differ_by_nature(trainings) else _calm(trainings)
    unit = _mean_of_slowest(1, trainings, calm)
    return _mean_of_slowest(workers, trainings, calm) / unit, _mean_of_slowest(workers, trainings, every) / unit


def _mean_of_slowest(workers: int, trainings: Sequence[StepTimes], kept: Sequence[np.ndarray]) -> float:
    """In seconds."""
    compute = np.concatenate([steps.compute_seconds for steps in trainings])
    counts = np.concatenate([np.asarray(steps.counts) * chosen for steps, chosen in zip(trainings, kept, strict=True)])
    order = np.argsort(compute)
    passed = np.concatenate([[0], np.cumsum(counts[order])]) / counts.sum()
    return float(np.sum(compute[order] * np.diff(passed**workers)))


def _calm(trainings: Sequence[StepTimes]) -> list[np.ndarray]:
    """Of each training which of its bins hold calm steps."""
    computed = _computed_calmly(trainings)
    rest = [_rest_seconds(steps) for steps in trainings]
    counts = [np.asarray(steps.counts) * kept for steps, kept in zip(trainings, computed, strict=True)]
    least, following = (_quantile(rest, counts, share) for share in (FASTEST, NEXT))
    tolerated = REST_LONGER * (least + _fastest_compute(trainings))
    limit = least + max(tolerated, REST_SPREADS * (following - least))
    short = [seconds <= limit for seconds in rest]
    if _by_nature(trainings, short, computed, REST_USUAL):
        return computed
    return [calm & kept for calm, kept in zip(computed, short, strict=True)]


def _computed_calmly(trainings: Sequence[StepTimes]) -> list[np.ndarray]:
    """Of each training the bins of steps that hardly computed for longer than the fastest."""
    limit = LONGER * _fastest_compute(trainings)
    return [np.asarray(steps.compute_seconds) <= limit for steps in trainings]


def _fastest_compute(trainings: Sequence[StepTimes]) -> float:
    """The seconds that an undisturbed core computes."""
    return _quantile(
        [np.asarray(steps.compute_seconds) for steps in trainings],
        [np.asarray(steps.counts) for steps in trainings],
        FASTEST,
    )


def _quantile(seconds: Sequence[np.ndarray], counts: Sequence[np.ndarray], share: float) -> float:
    """A quantile of the steps of all trainings together."""
    pooled, weights = np.concatenate(seconds), np.concatenate(counts)
    order = np.argsort(pooled)
    passed = np.cumsum(weights[order])
    return float(pooled[order][np.searchsorted(passed, share * passed[-1])])


def _rest_seconds(steps: StepTimes) -> np.ndarray:
    """Of each bin the mean of the time that workers spend in a step on all but its computation."""
    total: np.ndarray = np.sum([steps.phases[name] for name in REST], axis=0)
    mean: np.ndarray = total / (np.asarray(steps.counts) * steps.workers)
    return mean


def _mean_phases(trainings: Sequence[StepTimes], calm: Sequence[np.ndarray]) -> dict[str, float]:
    """The seconds of all workers in a calm step, by phase."""
    pairs = list(zip(trainings, calm, strict=True))
    count = sum(np.asarray(steps.counts)[kept].sum() for steps, kept in pairs)
    return {
        name: float(sum(np.asarray(steps.phases[name])[kept].sum() for steps, kept in pairs) / count)
        for name in trainings[0].phases
    }
