"""Time to a target accuracy, and why it differs from the baseline's: throughput x samples needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dpexp.results.schema import Training


@dataclass(frozen=True)
class TimeToTarget:
    """Of the median seed; NaN where that did not reach the target, or there is none.

    The split is exact, because seconds are samples / throughput:
    target_speedup = target_throughput_ratio x target_samples_ratio.
    """

    target_accuracy: float = math.nan
    target_seconds: float = math.nan
    target_samples: float = math.nan
    baseline_target_seconds: float = math.nan
    target_speedup: float = math.nan
    target_throughput_ratio: float = math.nan
    target_samples_ratio: float = math.nan  # the baseline's samples over the candidate's


@dataclass(frozen=True)
class Reached:
    """The whole trainings of one arm, and what an epoch of it takes."""

    trainings: Sequence[Training]
    epoch_samples: int
    epoch_seconds: float


def time_to_target(target: float, candidate: Reached, baseline: Reached) -> TimeToTarget:
    """Of the candidate, and beside it of the baseline."""
    epochs, baseline_epochs = _median_epochs(candidate.trainings, target), _median_epochs(baseline.trainings, target)
    seconds, samples = epochs * candidate.epoch_seconds, epochs * candidate.epoch_samples
    baseline_seconds, baseline_samples = (
        baseline_epochs * baseline.epoch_seconds,
        baseline_epochs * baseline.epoch_samples,
    )
    return TimeToTarget(
        target_accuracy=target,
        target_seconds=seconds,
        target_samples=samples,
        baseline_target_seconds=baseline_seconds,
        target_speedup=baseline_seconds / seconds,
        target_throughput_ratio=(samples / seconds) / (baseline_samples / baseline_seconds),
        target_samples_ratio=baseline_samples / samples,
    )


def _median_epochs(trainings: Sequence[Training], target: float) -> float:
    """The epochs that the median training needs, the slower of the middle two; NaN where it fell short."""
    reached = []
    for training in trainings:
        epochs = [epoch for epoch, accuracy in enumerate(training.epoch_accuracies, 1) if accuracy >= target]
        reached += epochs[:1]
    middle = len(trainings) // 2
    return float(sorted(reached)[middle]) if middle < len(reached) else math.nan
