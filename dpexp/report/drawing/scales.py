"""The scales of figures: which range they show, and which numbers stand beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import NullLocator

MOST_TICKS = 8


def ends(table: pd.DataFrame, column: str) -> tuple[float, float]:
    """The least and the greatest mark of a column, intervals included, in any panel."""
    columns = table[[column, f"{column}_low", f"{column}_high"]]
    return columns.min(axis=None), columns.max(axis=None)


def logarithmic(axes: Axes, which: str, low: float, high: float, ticks: Sequence[float]) -> None:
    """A logarithmic scale of base 2 from `low` to `high` with numbers at `ticks` alone."""
    getattr(axes, f"set_{which}scale")("log", base=2)
    getattr(axes, f"set_{which}lim")(low, high)
    axis: Axis = getattr(axes, f"{which}axis")
    axis.set_ticks(ticks, labels=[f"{tick:,.10g}" for tick in ticks])
    axis.set_minor_locator(NullLocator())


def sparse(values: Sequence[int], most: int = MOST_TICKS) -> list[int]:
    """Of sorted values, an even choice with the first and the last."""
    if len(values) <= most:
        return list(values)
    return [values[round(at * (len(values) - 1) / (most - 1))] for at in range(most)]


def ratio_ticks(low: float, high: float) -> list[float]:
    """Powers of two, and round numbers between them where the range is small."""
    doublings = math.log2(high / low)
    if doublings < 2:
        return _within(
            low, high, [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8]
        )
    parts = (1, 1.5) if doublings < 4 else (1,)
    return _within(low, high, [2.0**power * part for power in range(-20, 21) for part in parts])


def seconds_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten, fewer where the range is large."""
    parts = (1, 2, 5) if high / low < 2000 else (1,)
    ticks = [10.0**power * part for power in range(-9, 10) for part in parts]
    return _within(low / 1.25, high * 1.25, ticks)


def _within(low: float, high: float, ticks: Sequence[float]) -> list[float]:
    return [tick for tick in ticks if low <= tick <= high]
