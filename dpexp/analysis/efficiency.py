"""Why a speedup is not the number of workers: a tree of factors, from the phases that workers recorded.

After the POP centre of excellence (Performance Optimisation and Productivity, pop-coe.eu, "Standard Metrics for
Performance Audits"): efficiency = parallel efficiency x computation scaling, and parallel efficiency = load balance x
communication efficiency. Useful time is data, compute and update. POP takes the slowest worker's useful time over the
whole run; here workers meet in every step, so it is each worker's useful time plus its wait for the slowest, which is
recorded in every step: before anything is communicated, and after it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dpexp.analysis.undisturbed import have_steps, phases_of_workers
from dpexp.config.experiment import ExperimentConfig
from dpexp.phases import PHASES, USEFUL
from dpexp.results.schema import Block

Seconds = Mapping[str, float]
"""The total seconds of one worker by phase."""


@dataclass(frozen=True)
class Tree:
    """Factors between 0 and (mostly) 1; NaN where the phases don't tell.

    `parallel_efficiency` = `load_balance` x `communication_efficiency`;
    efficiency = `parallel_efficiency` x `computation_scaling`.
    """

    parallel_efficiency: float = math.nan
    load_balance: float = math.nan
    communication_efficiency: float = math.nan
    computation_scaling: float = math.nan


@dataclass(frozen=True)
class PhaseTimes:
    """Where the time goes, as means over blocks: seconds of all processes together, and of a step."""

    data_seconds: float = math.nan
    compute_seconds: float = math.nan
    wait_seconds: float = math.nan
    communicate_seconds: float = math.nan
    update_seconds: float = math.nan
    baseline_data_seconds: float = math.nan
    baseline_compute_seconds: float = math.nan
    baseline_update_seconds: float = math.nan
    step_median_seconds: float = math.nan
    step_p95_seconds: float = math.nan
    step_p99_seconds: float = math.nan

    @property
    def total_seconds(self) -> float:
        """Of all phases of the candidate's processes; NaN where one is unknown."""
        return sum(float(getattr(self, f"{name}_seconds")) for name in PHASES)

    @property
    def baseline_total_seconds(self) -> float:
        """Of the baseline's process; NaN where one is unknown."""
        return sum(float(getattr(self, f"baseline_{name}_seconds")) for name in USEFUL)

    @property
    def useful_seconds(self) -> float:
        """Of those that a sequential process has, too."""
        return sum(float(getattr(self, f"{name}_seconds")) for name in USEFUL)


def tree(seconds: float, workers: Sequence[Seconds], baseline: Sequence[Seconds], work_ratio: float) -> Tree:
    """The factors of one training of `seconds` by `workers`, against the `baseline` of sequential phases.

    `work_ratio` is the training's samples over the baseline's (1 but in weak scaling).
    """
    if not workers:
        return Tree()
    useful = [useful_seconds(worker) for worker in workers]
    until_slowest = sum(useful) + sum(worker.get("wait", math.nan) for worker in workers)
    total = seconds * len(workers)
    baseline_useful = sum(useful_seconds(worker) for worker in baseline)
    return Tree(
        parallel_efficiency=sum(useful) / total,
        load_balance=sum(useful) / until_slowest,
        communication_efficiency=until_slowest / total,
        computation_scaling=baseline_useful * work_ratio / sum(useful) if baseline else math.nan,
    )


def useful_seconds(worker: Seconds) -> float:
    """The work of one worker that a sequential process has to do, too."""
    return sum(worker[phase] for phase in USEFUL)


def mean_tree(config: ExperimentConfig, blocks: Sequence[Block]) -> Tree:
    """The factors of a configuration, from calm steps where these are known: else each is the mean over its blocks."""
    candidates = [block.candidate for block in blocks]
    baselines = [block.baseline for block in blocks if block.baseline is not None]
    trees = []
    if have_steps(candidates, baselines):
        workers, baseline = (next(iter(phases_of_workers(side, True)), []) for side in (candidates, baselines))
        seconds = sum(workers[0][phase] for phase in PHASES)
        trees.append(tree(seconds, _parallel(config, workers), baseline, config.work_ratio))
    else:
        for block in blocks:
            baseline = [] if block.baseline is None else block.baseline.phase_seconds
            parallel = _parallel(config, block.candidate.phase_seconds)
            trees.append(tree(block.candidate.seconds, parallel, baseline, config.work_ratio))
    return Tree(**{name: _mean(getattr(factors, name) for factors in trees) for name in Tree.__dataclass_fields__})


def _parallel(config: ExperimentConfig, workers: Sequence[Seconds]) -> Sequence[Seconds]:
    """The workers, if each is a process: one that plays several has no parallel efficiency."""
    return workers if len(workers) == config.workers else []


def phase_times(blocks: Sequence[Block]) -> PhaseTimes:
    """Where the time of a configuration goes, as means over its blocks."""
    candidates = [block.candidate for block in blocks]
    baselines = [block.baseline for block in blocks if block.baseline is not None]
    by_steps = have_steps(candidates, baselines)
    totals: dict[str, list[float]] = {name: [] for name in PhaseTimes.__dataclass_fields__}
    for workers in phases_of_workers(candidates, by_steps):
        for name in PHASES:
            totals[f"{name}_seconds"].append(len(workers) * _mean(worker.get(name) for worker in workers))
    for workers in phases_of_workers(baselines, by_steps) or [[]]:
        for name in USEFUL:
            totals[f"baseline_{name}_seconds"].append(_mean(worker.get(name) for worker in workers))
    for candidate in candidates:
        steps = [worker.phases["step"] for worker in candidate.workers if "step" in worker.phases]
        for name in ("median", "p95", "p99"):
            totals[f"step_{name}_seconds"].append(_mean(getattr(step, name) for step in steps))
    return PhaseTimes(**{name: _mean(values) for name, values in totals.items()})


def _mean(values: Iterable[float | None]) -> float:
    """NaN where there is nothing, or something is missing."""
    numbers = [math.nan if value is None else value for value in values]
    return sum(numbers) / len(numbers) if numbers else math.nan
