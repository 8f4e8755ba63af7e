"""How figures look: colours and markers, scales, and the numbers beside these.

Colours can be told apart without full colour vision, and markers without any.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import MaxNLocator, NullLocator

# Okabe and Ito's palette; what looks alike in grey has another marker.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LOSS_COLORS = ("#D55E00", "#E69F00", "#CC79A7")
TEXT, GREY, BAR = "#1c1c1c", "#767676", "#7fb2d6"

MOST_TICKS = 8

Style = tuple[str, str]
"""A colour and a marker."""


def styles(values: pd.Series) -> dict[Any, Style]:
    """A colour and a marker for each value, the same in all figures."""
    found = enumerate(sorted(values.unique()))
    return {value: (COLORS[at % len(COLORS)], MARKERS[at % len(MARKERS)]) for at, value in found}


def ends(table: pd.DataFrame, column: str) -> tuple[float, float]:
    """The least and the greatest mark of a column, intervals included, in any panel."""
    columns = table[[column, f"{column}_low", f"{column}_high"]]
    return columns.min(axis=None), columns.max(axis=None)


def logarithmic(axes: Axes, which: str, low: float, high: float, ticks: Sequence[float]) -> None:
    """A logarithmic scale of base 2 from `low` to `high` with numbers at `ticks` alone."""
    getattr(axes, f"set_{which}scale")("log", base=2)
    axis: Axis = getattr(axes, f"{which}axis")
    axis.set_ticks(ticks, labels=[f"{tick:,.10g}" for tick in ticks])
    axis.set_minor_locator(NullLocator())
    getattr(axes, f"set_{which}lim")(low, high)  # the last: ticks beyond them would widen them


def sparse(values: Sequence[int], most: int = MOST_TICKS) -> list[int]:
    """Of sorted values, an even choice with the first and the last."""
    if len(values) <= most:
        return list(values)
    return [values[round(at * (len(values) - 1) / (most - 1))] for at in range(most)]


def ratio_ticks(low: float, high: float) -> list[float]:
    """Powers of two, or round numbers where the range is small."""
    if high / low < 4:
        return [float(tick) for tick in MaxNLocator(MOST_TICKS).tick_values(low, high)]
    return [2.0**power for power in range(-20, 21)]


def seconds_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten, fewer where the range is large."""
    return [10.0**power * part for power in range(-9, 10) for part in ((1, 2, 5) if high / low < 2000 else (1,))]
