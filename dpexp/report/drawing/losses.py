"""The efficiency tree as a picture: of the ideal speedup, what is reached, and what takes the rest."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.axes import Axes

from dpexp.report.drawing.style import BAR, LOSS_COLORS, TEXT

LEAST_SHARE = 0.05  # that has room for its number


def shares(row: pd.Series) -> dict[str, float]:
    """Of the ideal speedup: what is reached, and what each factor takes, from the last to the first.

    Of what `computation_scaling` leaves, waiting takes its part, and of what that leaves, exchanging. Computation that
    gets faster with more workers makes the sum more than 1.
    """
    after_computation = row.computation_scaling
    after_waiting = after_computation * row.load_balance
    reached = after_waiting * row.communication_efficiency
    return {
        "reached": reached,
        "lost exchanging gradients": after_waiting - reached,
        "lost waiting for other workers": after_computation - after_waiting,
        "lost in slower computation": max(0.0, 1 - after_computation),
    }


def paint(axes: Axes, rows: pd.DataFrame, counts: list[int]) -> None:
    """A bar for each number of workers."""
    colors = (BAR, *LOSS_COLORS)
    longest = 1.0
    for _, row in rows.iterrows():
        left, place = 0.0, counts.index(row.workers)
        for color, (name, share) in zip(colors, shares(row).items(), strict=True):
            if math.isnan(share):
                continue
            axes.barh(place, share, 0.62, left, color=color, edgecolor="white", lw=0.8, label=name)
            if share >= LEAST_SHARE:
                number = f"{100 * share:.0f} %"
                axes.text(left + share / 2, place, number, ha="center", va="center", color=TEXT)
            left += share
        longest = max(longest, left)
    axes.axvline(1, color=TEXT, lw=1.2)
    axes.set_xlim(0, 1.02 * longest)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
