"""Where a speedup, measured at some batch sizes, passes 1."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from dpexp.analysis.intervals import Estimate

NEAREST = 3  # measured batches whose speedups are nearest to 1 make the line
DRAWS = 4000
LARGEST = 700.0  # the log of a batch, where exp is still a number


def crossing(speedups: Mapping[int, Estimate]) -> Estimate | None:
    """The batch size at which the speedup passes 1; None where no two of the measured ones are on different sides.

    Near it, the log of the speedup is close to a line in the log of the batch: it is fitted to the nearest points, each
    with the weight of its interval. The interval of the crossing is that of lines through values drawn from these
    intervals. A high end of infinity says that the speedup may not reach 1.
    """
    nearest = sorted(speedups, key=lambda batch: abs(math.log(speedups[batch].value)))
    sides = [[batch for batch in nearest if (speedups[batch].value < 1) == below] for below in (True, False)]
    if not all(sides):
        return None
    pair = [side[0] for side in sides]
    chosen = pair + [batch for batch in nearest if batch not in pair][: NEAREST - 2]
    batches = np.log(chosen)
    values = np.log([speedups[batch].value for batch in chosen])
    deviations = np.array([_deviation(speedups[batch]) for batch in chosen])
    draws = np.random.default_rng(0).normal(values, deviations, (DRAWS, len(chosen)))
    low, high = np.percentile(_zeros(batches, draws, deviations), (2.5, 97.5), method="nearest")  # some are infinite
    (zero,) = _zeros(batches, values[None], deviations)
    if zero == math.inf:  # the third point bends the line too far
        return crossing({batch: speedups[batch] for batch in pair}) if len(chosen) > len(pair) else None
    return Estimate(*(math.exp(min(each, LARGEST)) if each < math.inf else math.inf for each in (zero, low, high)))


def _deviation(estimate: Estimate) -> float:
    """The standard deviation of the log, from a 95 % interval."""
    return max(1e-6, math.log(estimate.high / estimate.low) / 2 / 1.96)


def _zeros(batches: np.ndarray, values: np.ndarray, deviations: np.ndarray) -> np.ndarray:
    """Where the weighted least-squares line of each row of values (rows, batches) is 0; infinity if it doesn't rise."""
    weights = deviations**-2 / (deviations**-2).sum()
    centred = batches - batches @ weights
    means = values @ weights
    slopes = (values * weights) @ centred / (weights @ centred**2)
    rises = slopes > 0
    zeros: np.ndarray = np.where(rises, batches @ weights - means / np.where(rises, slopes, 1.0), math.inf)
    return zeros
