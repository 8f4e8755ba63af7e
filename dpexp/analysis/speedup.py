"""Speedups over the baseline or the best sequential process, and in reaching a target accuracy."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dpexp.analysis.arm_statistics import ArmStatistics
from dpexp.analysis.ratio_estimate import Comparison, compare
from dpexp.config.job import BASELINE, BEST_SEQUENTIAL, CANDIDATE
from dpexp.results.schema import Block, Training
from dpexp.results.series import SeriesMember


@dataclass(frozen=True)
class Speedup:
    """The speedup of a configuration over its baseline: a ratio of throughputs.

    For equal samples that is T(sequential) / T(w); in weak scaling, where w workers train on w times the baseline's
    samples, it is w T(1) / T(w) (Gustafson 1988).
    """

    comparison: Comparison
    candidate: ArmStatistics
    baseline: ArmStatistics | None


def over_baseline(members: Sequence[SeriesMember], spread_ratio: float) -> Speedup:
    """Return the speedup over the sequential arm of the same blocks; it is unknown without one."""
    config, blocks = members[0].result.config, _blocks(members)
    if any(BASELINE in block.arms for block in blocks):
        return _paired(members, BASELINE, spread_ratio)
    candidate = ArmStatistics(config, blocks, CANDIDATE, math.inf, _trainings(members, CANDIDATE), blocks)
    return Speedup(Comparison(), candidate, None)


def over_best_sequential(members: Sequence[SeriesMember], spread_ratio: float, threads: int | None) -> Speedup | None:
    """Return the speedup over the sequential process with `threads`, else over the best; None if not measured."""
    arms = _sequential(members)
    if not arms or not members[0].result.config.measurement.best_sequential:
        return None
    best = arms[threads] if threads in arms else min(arms.values(), key=lambda arm: arm.step_seconds)
    return _paired(members, best.arm_name, spread_ratio)


def common_best_threads(comparable: Sequence[Sequence[SeriesMember]]) -> int | None:
    """The threads of the fastest sequential process that took turns with each configuration; None if there is none.

    All blocks count the same, so that a configuration with a single, disturbed block doesn't decide for the others.
    """
    arms, counts = [_sequential(members) for members in comparable], [len(_blocks(members)) for members in comparable]
    common = set(arms[0]).intersection(*arms)

    def weighted_log(threads: int) -> float:
        logs = [by_threads[threads].log_step_seconds.log for by_threads in arms]
        return sum(count * log for count, log in zip(counts, logs, strict=True))

    return min(common, key=weighted_log, default=None)


def _sequential(members: Sequence[SeriesMember]) -> dict[int, ArmStatistics]:
    """The sequential processes that took turns with a configuration, by their threads."""
    config, blocks = members[0].result.config, _blocks(members)
    arms = [name for name in (BASELINE, BEST_SEQUENTIAL) if any(name in block.arms for block in blocks)]
    having = {name: [block for block in blocks if name in block.arms] for name in arms}
    found = [ArmStatistics(config.baseline(), blocks, name, math.inf, (), blocks) for name, blocks in having.items()]
    return {arm.threads: arm for arm in found}


def time_to_target(target: float, candidate: ArmStatistics, baseline: ArmStatistics) -> dict[str, float]:
    """Return the columns of the time to the target accuracy of the median seed; NaN if it was not reached.

    The split is exact, because seconds are samples / throughput:
    target_speedup = target_throughput_ratio x target_samples_ratio.
    """
    (seconds, samples), (baseline_seconds, baseline_samples) = (_needed(side, target) for side in (candidate, baseline))
    return {
        "target_accuracy": target,
        "target_seconds": seconds,
        "baseline_target_seconds": baseline_seconds,
        "target_speedup": baseline_seconds / seconds,
        "target_throughput_ratio": (samples / seconds) / (baseline_samples / baseline_seconds),
        "target_samples_ratio": baseline_samples / samples,
    }


def _needed(side: ArmStatistics, target: float) -> tuple[float, float]:
    """Return seconds and samples to the target of the median training; NaN if it did not reach the target."""
    reached = []
    for training in side.trainings:
        epochs = [epoch for epoch, accuracy in enumerate(training.epoch_accuracies, 1) if accuracy >= target]
        reached += epochs[:1]
    middle = len(side.trainings) // 2
    needed = sorted(reached)[middle] if middle < len(reached) else math.nan
    return needed * side.seconds.value / side.config.epochs, needed * side.config.train_samples


def _paired(members: Sequence[SeriesMember], arm: str, spread_ratio: float) -> Speedup:
    """Return the speedup over an arm of the same blocks."""
    config, blocks = members[0].result.config, [block for block in _blocks(members) if arm in block.arms]
    comparison = compare([member.result.blocks for member in members], arm, CANDIDATE, spread_ratio=spread_ratio)
    candidate = ArmStatistics(
        config, comparison.blocks, CANDIDATE, comparison.limits[1], _trainings(members, CANDIDATE), blocks
    )
    baseline = ArmStatistics(
        config.baseline(), comparison.blocks, arm, comparison.limits[0], _trainings(members, arm), blocks
    )
    return Speedup(comparison, candidate, baseline)


def _blocks(members: Sequence[SeriesMember]) -> list[Block]:
    return [block for member in members for block in member.result.blocks]


def _trainings(members: Sequence[SeriesMember], arm: str) -> list[Training]:
    return [training for member in members for training in member.result.trainings.get(arm, [])]
