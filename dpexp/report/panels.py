"""The panels of the figures, one method for each kind of figure, and their style.

Colours are distinguishable with colour-vision deficiency, and markers without colour.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import (
    FixedLocator,
    Locator,
    LogLocator,
    MaxNLocator,
    NullLocator,
    PercentFormatter,
    StrMethodFormatter,
)

from dpexp.errors import pluralize

# Okabe and Ito's palette; colours that look the same in grey have different markers.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LOSS_COLORS = ("#D55E00", "#E69F00", "#CC79A7")
TEXT, GREY, BAR = "#1c1c1c", "#767676", "#7fb2d6"
MAX_TICKS = 8

DrawPanel = Callable[[Axes, pd.DataFrame], None]
Style = tuple[str, str]
"""A colour and a marker."""
SEQUENTIAL = (  # columns shown as marks beside the time of workers: column, label, line style
    ("baseline_seconds", "one process", "-"),
    ("best_sequential_seconds", "best sequential process", ":"),
)
MIN_SHARE = 0.05  # share of a bar that is wide enough for its number


def shares(rows: pd.DataFrame) -> dict[str, pd.Series]:
    """Return the factors of efficiency as shares of the ideal speedup: what is reached, and the loss by each factor.

    The losses are taken in order: computation, waiting, exchanging. If computation gets faster with more workers, the
    sum is more than 1.
    """
    after_computation = rows.computation_scaling
    after_waiting = after_computation * rows.load_balance
    reached = after_waiting * rows.communication_efficiency
    return {
        "reached": reached,
        "lost exchanging gradients": after_waiting - reached,
        "lost waiting for other workers": after_computation - after_waiting,
        "lost to slower computation": (1 - after_computation).clip(lower=0),
    }


class Panels:
    """Draws each kind of figure into a panel with the rows of one series, on scales that all panels share."""

    def __init__(self, table: pd.DataFrame) -> None:
        self.counts = sorted(table.workers.unique().tolist())
        self.sizes = sorted(table.data_size.unique().tolist())
        self._workers, self._configured_sizes = _styles(table.workers), _styles(table.configured_size)
        columns = ("seconds", "speedup", "overall_speedup", "efficiency")
        self._ranges = {column: value_range(table, column) for column in columns}
        self._longest = table[["seconds_high", "seconds", *(name for name, _, _ in SEQUENTIAL)]].max(axis=None)
        self._each = " per worker" if (table.data_scope == "per_worker").all() else ""
        self._best_sequential = table.overall_speedup / table.overall_best_sequential_speedup  # its speedup

    def bars(self, axes: Axes, rows: pd.DataFrame) -> None:
        """Draw time by workers at one data size as bars, with marks for the time of one process."""
        for _, row in rows.iterrows():
            place = self.counts.index(row.workers)
            hatch = "///" if row.oversubscribed else None
            axes.barh(place, row.seconds, 0.6, color=BAR, hatch=hatch, edgecolor="white", lw=0)
            interval = [[row.seconds - row.seconds_low], [row.seconds_high - row.seconds]]
            axes.errorbar(row.seconds, place, xerr=interval, color=TEXT, capsize=4)
            for column, name, line in SEQUENTIAL:
                if not math.isnan(row[column]):
                    axes.vlines(row[column], place - 0.4, place + 0.4, color=TEXT, lw=2, ls=line, label=name, zorder=4)
            digits = f"{row.seconds:,.0f}" if row.seconds >= 100 else f"{row.seconds:#.3g}"
            axes.text(1.01, place, f"{digits} s", va="center", transform=axes.get_yaxis_transform())
        _worker_rows(axes, self.counts, rows)
        axes.set_xlim(0, 1.04 * self._longest)
        axes.set_xlabel("seconds")

    def time(self, axes: Axes, rows: pd.DataFrame) -> None:
        """Draw time against data size, a line for each worker count."""
        self._over_sizes(axes, rows, "seconds")
        low, high = self._ranges["seconds"]
        _logarithmic(axes, "y", low / 1.25, high * 1.25, LogLocator(10, (1, 2, 5)))
        axes.set_ylabel("seconds")

    def speedup(self, axes: Axes, rows: pd.DataFrame) -> None:
        """Draw speedup against data size, a line for each worker count."""
        self._over_sizes(axes, rows, "speedup")
        self._speedup_scale(axes)

    def efficiency(self, axes: Axes, rows: pd.DataFrame) -> None:
        """Draw efficiency against data size, a line for each worker count."""
        self._over_sizes(axes, rows, "efficiency")
        axes.axhline(1, color=GREY, lw=1, zorder=1)
        axes.set_ylim(0, 1.06 * max(1.0, self._ranges["efficiency"][1]))
        axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        axes.set_ylabel("efficiency")

    def speedup_by_workers(self, axes: Axes, rows: pd.DataFrame) -> None:
        """Draw speedup against workers with the ideal line, a line per data size; numbers for the largest."""
        low, high = self.counts[0] / 1.3, self.counts[-1] * 1.45
        lines = _lines(rows, "configured_size")
        for size, line, shift in lines:
            name = pluralize(size, "sample") + self._each
            _line(axes, line, "speedup", line.workers * shift, self._configured_sizes[size], name)
        size, line, shift = lines[-1]
        axes.plot([low, high], [low, high], color=GREY, ls="--", lw=1.2, zorder=1, label="ideal")
        largest = rows[(rows.configured_size == rows.configured_size.max()) & (rows.workers > 1)]
        comparable = largest[~largest.oversubscribed.astype(bool)]  # as the answer prefers them
        best = self._best_sequential[(largest if comparable.empty else comparable).index].mean()
        if not math.isnan(best):
            axes.axhline(best, color=TEXT, ls=":", lw=1.5, zorder=1, label=f"best sequential process: {best:.2f}")
        here = line[line.overall_speedup.astype(float) != line.speedup.astype(float)]
        if len(here):
            name = f"overall speedup, {pluralize(size, 'sample')}"
            _line(axes, here, "overall_speedup", here.workers * shift, (TEXT, "x"), name, between="none")
        for _, row in line[line.workers > 1].iterrows():
            place = (row.workers * shift, row.speedup)
            text = axes.annotate(f"{row.speedup:.2f}", place, (8, 4), textcoords="offset points", fontweight="bold")
            text.set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5})  # lines may cross it
        _logarithmic(axes, "x", low, high, FixedLocator(sparse(self.counts)))
        axes.set_xlabel("workers")
        self._speedup_scale(axes)

    def losses(self, axes: Axes, rows: pd.DataFrame) -> None:
        """Draw the shares of the ideal speedup that are reached and lost, by worker count at the largest data size."""
        size, counts = int(rows.configured_size.max()), [count for count in self.counts if count > 1]
        known = rows[(rows.configured_size == size) & (rows.workers > 1)]
        known = known[known.load_balance.notna() & known.computation_scaling.notna()]
        places, left = [counts.index(workers) for workers in known.workers], 0.0 * known.load_balance
        for color, (name, share) in zip((BAR, *LOSS_COLORS), shares(known).items(), strict=True):
            bars = axes.barh(places, share, 0.62, left, color=color, edgecolor="white", lw=0.8, label=name)
            numbers = [f"{100 * value:.0f} %" if value >= MIN_SHARE else "" for value in share]
            axes.bar_label(bars, numbers, label_type="center", color=TEXT)
            left += share
        axes.axvline(1, color=TEXT, lw=1.2)
        axes.set_xlim(0, 1.02 * max(1.0, left.max()))
        axes.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        _worker_rows(axes, counts, rows)
        axes.set_xlabel(f"share of the ideal speedup, {pluralize(size, 'sample')}{self._each}")

    def _over_sizes(self, axes: Axes, rows: pd.DataFrame, column: str) -> None:
        """Draw a line for each worker count over data sizes."""
        for workers, line, shift in _lines(rows, "workers"):
            name = pluralize(workers, "worker") + ("*" if line.oversubscribed.any() else "")
            _line(axes, line, column, line.data_size * shift, self._workers[workers], name)
        _logarithmic(axes, "x", self.sizes[0] / 1.25, self.sizes[-1] * 1.25, FixedLocator(sparse(self.sizes)))
        axes.set_xlabel("training samples")

    def _speedup_scale(self, axes: Axes) -> None:
        """Set the scale of all speedups, and mark 1."""
        marks = [1, self._best_sequential.max(), *self._ranges["speedup"], *self._ranges["overall_speedup"]]
        low, high = min(marks) / 1.15, max(marks) * 1.15
        axes.axhline(1, color=GREY, lw=1, zorder=1)
        _logarithmic(axes, "y", low, high, LogLocator(2) if high / low >= 4 else MaxNLocator(MAX_TICKS))
        axes.set_ylabel("speedup (1 = same speed)")


def value_range(table: pd.DataFrame, column: str) -> tuple[float, float]:
    """Return the smallest and the largest value of a column, including intervals, in any panel."""
    columns = table[[column, f"{column}_low", f"{column}_high"]]
    return columns.min(axis=None), columns.max(axis=None)


def sparse(values: Sequence[int], most: int = MAX_TICKS) -> list[int]:
    """Return at most `most` of sorted values, evenly spaced, with the first and the last."""
    if len(values) <= most:
        return list(values)
    return [values[round(at * (len(values) - 1) / (most - 1))] for at in range(most)]


def _styles(values: pd.Series) -> dict[Any, Style]:
    """Return a colour and a marker for each value, the same in all figures."""
    numbered = enumerate(sorted(values.unique()))
    return {value: (COLORS[at % len(COLORS)], MARKERS[at % len(MARKERS)]) for at, value in numbered}


def _logarithmic(axes: Axes, which: str, low: float, high: float, ticks: Locator) -> None:
    """Set a logarithmic scale from `low` to `high` with plain numbers at these ticks only."""
    getattr(axes, f"set_{which}scale")("log", base=2)
    axis: Axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(ticks)
    axis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))
    axis.set_minor_locator(NullLocator())
    getattr(axes, f"set_{which}lim")(low, high)


def _line(
    axes: Axes, line: pd.DataFrame, column: str, places: pd.Series, style: Style, name: str, between: str = "-"
) -> None:
    """Draw points with their intervals; open points and dashed lines mean more threads than cores."""
    color, marker = style
    is_open = line.oversubscribed.astype(bool)
    look: dict[str, Any] = {"ls": "--", "mfc": "white"} if is_open.all() and between == "-" else {"ls": between}
    values, low, high = (line[f"{column}{end}"].to_numpy(float) for end in ("", "_low", "_high"))
    reach = [(values - low).tolist(), (high - values).tolist()]
    axes.errorbar(places, values, reach, fmt="none", color=color, capsize=3)
    axes.plot(places, values, color=color, marker=marker, lw=1.8, zorder=3, label=name, **look)
    axes.plot(places[is_open], values[is_open], color=color, marker=marker, mfc="white", ls="none", zorder=3)


def _worker_rows(axes: Axes, counts: list[int], rows: pd.DataFrame) -> None:
    """Set up a row of the panel for each worker count, the smallest on top."""
    oversubscribed = set(rows.workers[rows.oversubscribed.astype(bool)])
    axes.set_yticks(range(len(counts)), [f"{count}{'*' * (count in oversubscribed)}" for count in counts])
    axes.set_ylim(len(counts) - 0.45, -0.55)
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    axes.set_ylabel("workers")


def _lines(rows: pd.DataFrame, column: str) -> list[tuple[int, pd.DataFrame, float]]:
    """Return the rows of each value of a column, with a factor that sets points apart so that intervals can be read."""
    values = sorted(rows[column].unique())
    shifts = [1.022 ** (place - (len(values) - 1) / 2) for place in range(len(values))]
    return [(int(value), rows[rows[column] == value], shift) for value, shift in zip(values, shifts, strict=True)]
