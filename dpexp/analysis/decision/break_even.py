"""The break-even batch: where the speedup passes 1, and which batches to measure until that is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from dpexp.analysis.intervals import Estimate

STEP = 4  # from one batch to the next, until one is on the other side
MOST_CHECKS = 3
WELL_KNOWN = 0.1  # half of an interval, as a share
NEAREST = 3  # measured batches whose speedups are nearest to 1 make the line
DRAWS = 4000


@dataclass
class Search:
    """The speedup at each measured batch, and the last one that was measured to check a prediction."""

    speedups: dict[int, Estimate]
    checked: int | None = None

    @property
    def break_even(self) -> Estimate | None:
        """The batch from which workers beat one process; None where it was not found."""
        return crossing(self.speedups)

    @property
    def is_confirmed(self) -> bool:
        """Whether the speedup at the predicted batch was measured well, and can't be told from 1."""
        if self.checked is None:
            return False
        speedup = self.speedups[self.checked]
        return speedup.low <= 1 <= speedup.high and speedup.precision <= WELL_KNOWN


def search(measure: Callable[[int], Estimate], first: int, most: int) -> Search:
    """Measure at batch `first`, then larger or smaller ones up to `most`, then where the speedup should be 1."""
    found, batch = Search({first: measure(first)}), first
    while found.break_even is None:
        batch = batch * STEP if found.speedups[batch].value < 1 else batch // STEP
        if not 1 <= batch <= most:
            return found
        found.speedups[batch] = measure(batch)
    for _ in range(MOST_CHECKS):
        predicted = found.break_even
        if predicted is None:  # the speedup doesn't rise with the batch
            break
        found.checked = round(min(max(1.0, predicted.value), most))
        if found.checked not in found.speedups:
            found.speedups[found.checked] = measure(found.checked)
        if found.is_confirmed:
            break
    return found


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
    values = np.log([speedups[batch].value for batch in chosen])
    deviations = np.maximum(1e-6, [math.log1p(speedups[batch].precision) / 1.96 for batch in chosen])
    draws = np.random.default_rng(0).normal(values, deviations, (DRAWS, len(chosen)))
    slopes, levels = np.polyfit(np.log(chosen), np.vstack([values, draws]).T, 1, w=1 / deviations)
    zeros = np.divide(-levels, slopes, out=np.full_like(levels, math.inf), where=slopes > 0)
    if zeros[0] == math.inf:  # the third point bends the line too far
        return crossing({batch: speedups[batch] for batch in pair}) if len(chosen) > len(pair) else None
    with np.errstate(over="ignore"):
        low, high = np.exp(np.percentile(zeros[1:], (2.5, 97.5), method="nearest"))  # some are infinite
        return Estimate(float(np.exp(zeros[0])), float(low), float(high))
