"""Why is a speedup less than the number of workers? A tree of factors, from the phases of steps.

After the POP centre of excellence (Performance Optimisation and Productivity, pop-coe.eu, "Standard Metrics for
Performance Audits"): efficiency = parallel efficiency x computation scaling, and parallel efficiency = load balance x
communication efficiency. POP uses the slowest worker's useful time of the whole run; here each step counts useful time
plus the recorded wait for the slowest worker.
"""

import math
from collections.abc import Mapping, Sequence

from dpexp.phases import USEFUL

SecondsByPhase = Mapping[str, float]
"""The seconds of a step of one process, by phase."""
FACTORS = ("parallel_efficiency", "load_balance", "communication_efficiency", "computation_scaling")


def efficiency_factors(
    step_seconds: float, workers: Sequence[SecondsByPhase], baseline: Sequence[SecondsByPhase], work_ratio: float
) -> dict[str, float]:
    """Return the factors of the efficiency of a step of `workers`, relative to a step of the `baseline`.

    `work_ratio` is the samples of a step over those of the baseline's. The factors lie between 0 and (mostly) 1, and
    are NaN if the phases are unknown; {} without workers, or useful time.
    """
    useful = sum(useful_seconds(worker) for worker in workers)
    if useful <= 0:
        return {}
    until_slowest = useful + sum(worker.get("wait", math.nan) for worker in workers)
    total = step_seconds * len(workers)
    scaling = sum(map(useful_seconds, baseline)) * work_ratio / useful if baseline else math.nan
    factors = (useful / total, useful / until_slowest, until_slowest / total, scaling)
    return dict(zip(FACTORS, factors, strict=True))


def useful_seconds(process: SecondsByPhase) -> float:
    """The time of the work that a sequential process does, too."""
    return sum(process[phase] for phase in USEFUL)
