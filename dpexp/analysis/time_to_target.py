"""Time to a target accuracy, and why it differs from the baseline's: throughput x samples needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dpexp.config.experiment import ExperimentConfig
from dpexp.results.schema import Block, Training


@dataclass(frozen=True)
class TimeToTarget:
    """Medians over the blocks, which differ in seed; NaN where the target was not reached, or there is none.

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


def time_to_target(config: ExperimentConfig, blocks: Sequence[Block]) -> TimeToTarget:
    """Of the candidate, and beside it of the baseline."""
    if config.target_accuracy is None:
        return TimeToTarget()
    baselines = [block.baseline for block in blocks if block.baseline is not None]
    seconds, samples = _median([block.candidate for block in blocks], config.train_samples, config.target_accuracy)
    baseline_seconds, baseline_samples = _median(baselines, config.baseline().train_samples, config.target_accuracy)
    return TimeToTarget(
        target_accuracy=config.target_accuracy,
        target_seconds=seconds,
        target_samples=samples,
        baseline_target_seconds=baseline_seconds,
        target_speedup=baseline_seconds / seconds,
        target_throughput_ratio=(samples / seconds) / (baseline_samples / baseline_seconds),
        target_samples_ratio=baseline_samples / samples,
    )


def _median(trainings: Sequence[Training], epoch_samples: int, target: float) -> tuple[float, float]:
    """Seconds and samples of the median training by time; the slower of the middle two. NaN where it fell short."""
    reached = []
    for training in trainings:
        epochs = [epoch for epoch, accuracy in enumerate(training.epoch_accuracies) if accuracy >= target]
        if epochs:
            reached.append((training.epoch_seconds[epochs[0]], float((epochs[0] + 1) * epoch_samples)))
    middle = len(trainings) // 2
    return sorted(reached)[middle] if middle < len(reached) else (math.nan, math.nan)
