"""Why a speedup is not the number of workers: a tree of factors, from the phases of steps.

After the POP centre of excellence (Performance Optimisation and Productivity, pop-coe.eu, "Standard Metrics for
Performance Audits"): efficiency = parallel efficiency x computation scaling, and parallel efficiency = load balance x
communication efficiency. Useful time is data, compute and update. POP takes the slowest worker's useful time over the
whole run; here workers meet in every step, so it is each worker's useful time plus its wait for the slowest, which is
recorded in every step: before anything is communicated, and after it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dpexp.results.phases import PHASES, USEFUL
from dpexp.results.schema import Block

Seconds = Mapping[str, float]
"""The seconds of a step of one process, by phase."""


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
    """Where the time goes: seconds of all processes in a training, and of a step."""

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
    def of_workers(self) -> Seconds:
        """Of all processes of the candidate together; NaN where one is unknown."""
        return {phase: getattr(self, f"{phase}_seconds") for phase in PHASES}

    @property
    def of_baseline(self) -> Seconds:
        """Of the baseline's process; NaN where one is unknown."""
        return {phase: getattr(self, f"baseline_{phase}_seconds") for phase in USEFUL}


def phases_of_step(blocks: Sequence[Block], name: str, limit: float, step_seconds: float) -> list[Seconds]:
    """Of each process of an arm where a step's seconds go; [] where no phases are known.

    They are means over the recorded steps up to the limit, or over all where none is so short, scaled to
    `step_seconds`: recording takes some time itself.
    """
    arms = [block.arms[name] for block in blocks if name in block.arms and block.arms[name].phases]
    if not arms:
        return []
    known = [phase for phase in PHASES if all(phase in arm.phases for arm in arms)]
    table = np.concatenate([np.stack([np.asarray(arm.phases[phase]) for phase in known], 2) for arm in arms])
    totals = table.sum(2).mean(1)  # of (steps, processes, phases)
    short = totals <= limit
    means = table[short if short.any() else slice(None)].mean(0)
    means *= step_seconds / means.sum(1).mean()
    return [dict(zip(known, process.tolist(), strict=True)) for process in means]


def tree(step_seconds: float, workers: Sequence[Seconds], baseline: Sequence[Seconds], work_ratio: float) -> Tree:
    """The factors of a step of `step_seconds` by `workers`, against a step of the `baseline`.

    `work_ratio` is the samples of a step over those of the baseline's.
    """
    if not workers:
        return Tree()
    useful = sum(useful_seconds(worker) for worker in workers)
    until_slowest = useful + sum(worker.get("wait", math.nan) for worker in workers)
    total = step_seconds * len(workers)
    return Tree(
        parallel_efficiency=useful / total,
        load_balance=useful / until_slowest,
        communication_efficiency=until_slowest / total,
        computation_scaling=sum(map(useful_seconds, baseline)) * work_ratio / useful if baseline else math.nan,
    )


def useful_seconds(process: Seconds) -> float:
    """The work that a sequential process has to do, too."""
    return sum(process[phase] for phase in USEFUL)
