"""Which batches to measure, until the break-even batch is known and has been measured itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from dpexp.analysis.intervals import Estimate
from dpexp.break_even.crossing import crossing

STEP = 4  # from one batch to the next, until one is on the other side
MOST_CHECKS = 3
WELL_KNOWN = 0.1  # half of an interval, as a share


@dataclass
class Search:
    """The speedup at each measured batch, and the last one that was measured to check a prediction."""

    speedups: dict[int, Estimate] = field(default_factory=dict)
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
    found = Search()
    batch = first
    while True:
        found.speedups[batch] = measure(batch)
        if found.break_even is not None:
            break
        batch = batch * STEP if found.speedups[batch].value < 1 else batch // STEP
        if not 1 <= batch <= most:
            return found
    for _ in range(MOST_CHECKS):
        predicted = found.break_even
        if predicted is None:  # the speedup doesn't rise with the batch
            break
        found.checked = min(max(1, round(predicted.value)), most)
        if found.checked not in found.speedups:
            found.speedups[found.checked] = measure(found.checked)
        if found.is_confirmed:
            break
    return found
