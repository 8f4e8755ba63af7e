"""What the blocks of one configuration say beyond time and speedup: the best baseline, phases, time to a target."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dpexp.config import ExperimentConfig
from dpexp.efficiency import USEFUL, tree
from dpexp.position import PHASES
from dpexp.results import Block, Training
from dpexp.stats import geometric_mean, paired_ratio


def over_best(config: ExperimentConfig, blocks: Sequence[Block]) -> dict[str, float]:
    """The speedup over one sequential process with the best number of threads: what a user gains."""
    pairs = [(block.best or block.baseline, block.candidate) for block in blocks]
    if not config.measurement.best_sequential or any(best is None for best, _ in pairs):
        return {}
    best = [own for own, _ in pairs if own is not None]
    seconds = [own.seconds for own in best], [own.seconds for _, own in pairs]
    ratio = paired_ratio(*seconds, pilot=config.measurement.pilot)
    gain = ratio.scaled(config.work_ratio)
    return {
        "best_threads": best[0].threads,
        "best_seconds": geometric_mean([own.seconds for own in best]).value,
        "gain": gain.value,
        "gain_low": gain.low,
        "gain_high": gain.high,
    }


def counterfactuals(config: ExperimentConfig, blocks: Sequence[Block]) -> dict[str, float]:
    """Speedups that the same work reaches without waiting, and without any exchange: what the machine itself allows."""
    found: dict[str, float] = {}
    for name in ("unsynchronized", "independent"):
        others = [getattr(block, name) for block in blocks]
        pairs = [(block.baseline, other) for block, other in zip(blocks, others, strict=True)]
        known = [(alone.seconds, own.seconds) for alone, own in pairs if alone is not None and own is not None]
        if known:
            seconds = [alone for alone, _ in known], [own for _, own in known]
            ratio = paired_ratio(*seconds, pilot=config.measurement.pilot).scaled(config.work_ratio)
            found |= {f"{name}_speedup": ratio.value, f"{name}_low": ratio.low, f"{name}_high": ratio.high}
    return found


def to_target(config: ExperimentConfig, blocks: Sequence[Block]) -> dict[str, float]:
    """Time to the target accuracy, medians over the blocks, which differ in seed; NaN where it wasn't reached.

    The split is exact: seconds are samples / throughput, so that
    target_speedup = target_throughput_gain x target_samples_ratio.
    """
    if config.target_accuracy is None:
        return {}
    baselines = [block.baseline for block in blocks if block.baseline is not None]
    own = _median_to_target([block.candidate for block in blocks], config.train_samples, config.target_accuracy)
    alone = _median_to_target(baselines, config.baseline().train_samples, config.target_accuracy)
    return {
        "target_accuracy": config.target_accuracy,
        "target_seconds": own.seconds,
        "target_samples": own.samples,
        "baseline_target_seconds": alone.seconds,
        "target_speedup": alone.seconds / own.seconds,
        "target_throughput_gain": (own.samples / own.seconds) / (alone.samples / alone.seconds),
        "target_samples_ratio": alone.samples / own.samples,
    }


@dataclass(frozen=True)
class _ToTarget:
    seconds: float
    samples: float


def _median_to_target(trainings: Sequence[Training], epoch_samples: int, target: float) -> _ToTarget:
    """Of the training in the middle by time; the slower of two. NaN where that one, or every one, didn't get there."""
    found = []
    for own in trainings:
        epochs = [epoch for epoch, accuracy in enumerate(own.epoch_accuracies) if accuracy >= target]
        if epochs:
            found.append(_ToTarget(own.epoch_seconds[epochs[0]], (epochs[0] + 1) * epoch_samples))
    found.sort(key=lambda one: one.seconds)
    middle = len(trainings) // 2
    return found[middle] if middle < len(found) else _ToTarget(math.nan, math.nan)


def where_time_went(config: ExperimentConfig, blocks: Sequence[Block]) -> dict[str, float]:
    """Means over the blocks: the efficiency tree, all processes' seconds by phase, and the distribution of steps."""
    rows = []
    for block in blocks:
        own = block.candidate.phase_seconds
        alone = [] if block.baseline is None else block.baseline.phase_seconds
        # One process that plays several workers has no parallel efficiency.
        players = own if len(own) == config.workers else []
        factors = tree(block.candidate.seconds, players, alone, config.work_ratio)
        rows.append(
            {
                "parallel_efficiency": factors.parallel,
                "load_balance": factors.load_balance,
                "communication_efficiency": factors.communication,
                "computation_scaling": factors.computation_scaling,
                **{f"{name}_seconds": len(own) * _mean(worker.get(name) for worker in own) for name in PHASES},
                **{f"baseline_{name}_seconds": _mean(one.get(name) for one in alone) for name in USEFUL},
                **{
                    f"step_{statistic}_seconds": _mean(
                        getattr(one.phases["step"], statistic)
                        for one in block.candidate.workers
                        if "step" in one.phases
                    )
                    for statistic in ("median", "p95", "p99")
                },
            }
        )
    return {name: _mean(row[name] for row in rows) for name in rows[0]}


def _mean(values: Iterable[float | None]) -> float:
    """NaN where there is nothing, or something is missing."""
    numbers = [math.nan if value is None else value for value in values]
    return sum(numbers) / len(numbers) if numbers else math.nan
