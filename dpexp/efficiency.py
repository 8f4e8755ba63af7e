"""Why a speedup is not the number of workers: a tree of factors, from the phases that workers recorded.

In the manner of the POP centre of excellence (Performance Optimisation and Productivity, pop-coe.eu, "Standard
Metrics for Performance Audits"): efficiency = parallel efficiency x computation scaling, and parallel efficiency
= load balance x communication efficiency. Useful time is data, compute and update. POP takes the slowest worker's
useful time over the whole run; here workers meet in every step, so it is each worker's useful time plus its wait for
the slowest, which is recorded step by step, before anything is communicated. Pure functions of numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

USEFUL = ("data", "compute", "update")


@dataclass(frozen=True)
class Tree:
    """Factors between 0 and (mostly) 1; NaN where the phases don't tell.

    `parallel` = `load_balance` x `communication`; efficiency = `parallel` x `computation_scaling`.
    """

    parallel: float
    load_balance: float
    communication: float
    computation_scaling: float


Seconds = Mapping[str, float]
"""Seconds of one worker by phase, in all."""


def tree(seconds: float, workers: Sequence[Seconds], baseline: Sequence[Seconds], work_ratio: float) -> Tree:
    """The factors of one training of `seconds` by `workers`, against the `baseline` of sequential phases.

    `work_ratio` is the training's samples over the baseline's (1 but in weak scaling).
    """
    if not workers:
        return Tree(math.nan, math.nan, math.nan, math.nan)
    useful = [useful_seconds(own) for own in workers]
    until_slowest = sum(useful) + sum(own.get("wait", math.nan) for own in workers)
    whole = seconds * len(workers)
    alone = sum(useful_seconds(own) for own in baseline)
    return Tree(
        parallel=sum(useful) / whole,
        load_balance=sum(useful) / until_slowest,
        communication=until_slowest / whole,
        computation_scaling=alone * work_ratio / sum(useful) if baseline else math.nan,
    )


def useful_seconds(worker: Seconds) -> float:
    """What one worker would also do alone."""
    return sum(worker[phase] for phase in USEFUL)
