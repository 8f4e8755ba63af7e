"""How figures look: colours that can be told apart without full colour vision, and markers for those without any."""

from __future__ import annotations

from typing import Any

import pandas as pd

# Okabe and Ito's palette; what looks alike in grey has another marker.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LOSS_COLORS = ("#D55E00", "#E69F00", "#CC79A7")
TEXT, GREY, BAR = "#1c1c1c", "#767676", "#7fb2d6"

MATPLOTLIB = {
    "font.size": 10.5,
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "legend.handlelength": 1.8,
    "legend.columnspacing": 1.2,
    "hatch.linewidth": 1.5,
    "svg.hashsalt": "dpexp",
}

Style = tuple[str, str]
"""A colour and a marker."""


def styles(values: pd.Series) -> dict[Any, Style]:
    """A colour and a marker for each value, the same in all figures."""
    found = enumerate(sorted(values.unique()))
    return {value: (COLORS[at % len(COLORS)], MARKERS[at % len(MARKERS)]) for at, value in found}
