"""The time of a training from its calm steps: those in which no worker's core was slowed down.

On a virtual machine, a core's other hyperthread may belong to somebody else, whose bursts of milliseconds halve its
speed, for minutes on end and without a trace in any counter. With several workers, each burst on any core slows the
step of all. But nobody makes a computation faster: its shortest times are those of an undisturbed core, and a step is
calm where its slowest worker computed for hardly longer than that. What workers wait for, exchange and update in calm
steps counts in full. `tests/traces` has the steps of 14 commands on such a machine, and `tests/test_calm_steps.py` what
this makes of them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np

from dpexp.phases import COMPUTE, PHASES
from dpexp.results.schema import StepTimes

BIN = 1.01  # from one compute time to the next
FASTEST = 0.01  # this quantile of all steps is the computation of an undisturbed core ...
LONGER = 1.15  # ... and steps that compute for up to so many times as long are calm
AFTER_COMPUTE = ("wait", "communicate", "update")
OTHERS_LONGER = 1.2  # times the least that a training spends on these: it was disturbed there
LEAST_CALM = 0.2  # of a training's steps; with fewer of them it doesn't count
HELD_UP = 3.0  # times the usual: a step that spends more on all but its computation was interrupted there
USUAL = 0.5  # of the steps of the calmest training; with fewer, and ...
ALIKE = 0.5  # times as many in the least calm one, computations differ by nature: neighbours come and go


def binned(ranks: np.ndarray, updates: int, partial_updates: int, partial_seconds: float) -> StepTimes:
    """Steps by the time that their slowest worker computed: as much of them as is needed here, in few numbers.

    `ranks` (workers, steps, phases) are seconds.
    """
    compute, totals = _slowest(ranks), ranks.sum(0)
    bins, places = np.unique(np.floor(np.log(compute) / math.log(BIN)), return_inverse=True)
    return StepTimes(
        updates=updates,
        partial_updates=partial_updates,
        partial_seconds=partial_seconds,
        workers=len(ranks),
        compute_seconds=[float(f"{middle:.4g}") for middle in BIN ** (bins + 0.5)],
        counts=np.bincount(places).tolist(),
        phases={
            name: [float(f"{total:.6g}") for total in np.bincount(places, totals[:, phase])]
            for phase, name in enumerate(PHASES)
        },
    )


def _slowest(ranks: np.ndarray) -> np.ndarray:
    """How long the slowest worker computed in each step; of steps that were held up elsewhere, the whole step."""
    compute, whole = ranks[:, :, COMPUTE].max(0), ranks.sum(2).mean(0)
    held_up = whole - compute > HELD_UP * np.median(whole - compute)
    slowest: np.ndarray = np.where(held_up, np.maximum(whole, compute), compute)
    return slowest


def undisturbed_seconds(trainings: Sequence[StepTimes]) -> list[float]:
    """Of each training the time that it takes when all steps are calm; NaN where too few were."""
    found = []
    partial = statistics.median(steps.partial_seconds for steps in trainings)
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
    partial = statistics.median(steps.partial_seconds for steps in trainings)
    updates = first.updates + first.partial_updates * partial * first.workers / sum(means.values())
    return {name: updates * seconds / first.workers for name, seconds in means.items()}


def differ_by_nature(trainings: Sequence[StepTimes]) -> bool:
    """Whether the model itself makes steps differ, and not others: then all trainings have few calm steps, alike."""
    kept = zip(trainings, _computed_calmly(trainings), strict=True) if trainings else ()
    shares = [float(np.asarray(steps.counts)[calm].sum()) / sum(steps.counts) for steps, calm in kept]
    return bool(shares) and max(shares) < USUAL and min(shares) >= ALIKE * max(shares)


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
    pairs = list(zip(trainings, kept, strict=True))
    compute = np.concatenate([np.asarray(steps.compute_seconds)[chosen] for steps, chosen in pairs])
    counts = np.concatenate([np.asarray(steps.counts)[chosen] for steps, chosen in pairs])
    order = np.argsort(compute)
    passed = np.concatenate([[0], np.cumsum(counts[order])]) / counts.sum()
    return float(np.sum(compute[order] * np.diff(passed**workers)))


def _calm(trainings: Sequence[StepTimes]) -> list[np.ndarray]:
    """Of each training which of its bins hold calm steps; of one that was delayed between computations, none."""
    calm = _computed_calmly(trainings)
    others = [_exchange_and_update(steps, kept) for steps, kept in zip(trainings, calm, strict=True)]
    limit = OTHERS_LONGER * min((seconds for seconds in others if not math.isnan(seconds)), default=math.nan)
    return [kept & bool(seconds <= limit) for kept, seconds in zip(calm, others, strict=True)]


def _computed_calmly(trainings: Sequence[StepTimes]) -> list[np.ndarray]:
    """Of each training the bins of steps that hardly computed for longer than the fastest."""
    compute = np.concatenate([steps.compute_seconds for steps in trainings])
    counts = np.concatenate([steps.counts for steps in trainings])
    order = np.argsort(compute)
    passed = np.cumsum(counts[order])
    fastest = compute[order][np.searchsorted(passed, FASTEST * passed[-1])]
    return [np.asarray(steps.compute_seconds) <= LONGER * fastest for steps in trainings]


def _exchange_and_update(steps: StepTimes, calm: np.ndarray) -> float:
    """The seconds of a calm step after its computation, which others delay, and a disk doesn't; NaN without steps.

    A program that takes turns with a worker on its core delays it there, while its computations take as long as ever.
    """
    if not np.asarray(steps.counts)[calm].any():
        return math.nan
    phases = _mean_phases([steps], [calm])
    return sum(phases[name] for name in AFTER_COMPUTE)


def _mean_phases(trainings: Sequence[StepTimes], calm: Sequence[np.ndarray]) -> dict[str, float]:
    """The seconds of all workers in a calm step, by phase."""
    pairs = list(zip(trainings, calm, strict=True))
    count = sum(np.asarray(steps.counts)[kept].sum() for steps, kept in pairs)
    return {
        name: float(sum(np.asarray(steps.phases[name])[kept].sum() for steps, kept in pairs) / count)
        for name in trainings[0].phases
    }
