"""What a panel of each figure shows: one method a kind of figure."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from dpexp.decision.verdict import Verdict
from dpexp.drawing import losses, outlook
from dpexp.drawing.scales import MarkedRange, logarithmic, ratio_ticks, seconds_ticks, sparse
from dpexp.drawing.style import BAR, GREY, PHASE_COLORS, SHADE, TEXT, Style, styles
from dpexp.phases import PHASES, USEFUL
from dpexp.words import counted

BESIDE: dict[str, Any] = {"clip_on": True, "in_layout": False}  # words among lines, which take no room of their own
Painter = Callable[[Axes, pd.DataFrame], None]


class Panels:
    """How each figure fills one panel with the rows of one series, on scales that all its panels share."""

    def __init__(self, table: pd.DataFrame, verdict: Verdict | None = None) -> None:
        self._verdict, (self._most_workers, self._most_speedup) = verdict, outlook.reach(verdict)
        self.counts = sorted(table.workers.unique().tolist())
        self.sizes = sorted(table.data_size.unique().tolist())
        self._table = table
        self._workers, self._configured_sizes = styles(table.workers), styles(table.configured_size)
        self._ranges = {name: MarkedRange.of(table, name) for name in ("seconds", "speedup", "efficiency")}
        self._each = " per worker" if (table.data_scope == "per_worker").all() else ""
        self._best_sequential = table.baseline_seconds / table.best_sequential_seconds

    @property
    def cuts_intervals(self) -> bool:
        """Whether an interval reaches beyond its panel."""
        return any(shown.is_cut for shown in self._ranges.values())

    def bars(self, size: int) -> Painter:
        """Time by workers, a bar each, with what one process takes as marks across it."""
        of_size = self._table[self._table.data_size == size]
        counts = sorted(of_size.workers.unique().tolist())
        longest = of_size[["seconds", "baseline_seconds", "best_sequential_seconds"]].max(axis=None)
        limit = 1.04 * max(longest, min(of_size.seconds_high.max(), 1.5 * longest))

        def paint(axes: Axes, rows: pd.DataFrame) -> None:
            rows = rows[rows.data_size == size]
            for _, row in rows.iterrows():
                place = counts.index(row.workers)
                hatch = "///" if row.oversubscribed else None
                axes.barh(place, row.seconds, 0.6, color=BAR, hatch=hatch, edgecolor="white", lw=0)
                _interval(axes, row, place)
                if row.baseline.startswith("sequential"):
                    _mark(axes, row.baseline_seconds, place, "-", "one sequential process")
                _mark(axes, row.best_sequential_seconds, place, ":", "best sequential process")
                beside = axes.get_yaxis_transform()
                axes.text(1.01, place, f"{_digits(row.seconds)} s", va="center", transform=beside)
            _worker_rows(axes, counts, rows)
            axes.set_xlim(0, limit)
            axes.set_xlabel("seconds")

        return paint

    def phases(self, axes: Axes, rows: pd.DataFrame) -> None:
        """Seconds of all workers together by phase, at the most samples; without loss all bars would be as long."""
        largest = self._table[
            self._table.configured_size == self._table.groupby("series").configured_size.transform("max")
        ]
        longest = largest[[f"{name}_seconds" for name in PHASES]].sum(axis=1).max()
        rows = rows[(rows.configured_size == rows.configured_size.max()) & rows.compute_seconds.notna()]
        for _, row in rows.iterrows():
            place, left = self.counts.index(row.workers), 0.0
            for color, name in zip(PHASE_COLORS, PHASES, strict=True):
                seconds = row[f"{name}_seconds"]
                if not math.isnan(seconds):
                    axes.barh(place, seconds, 0.6, left, color=color, edgecolor="white", lw=0.6, label=name)
                    left += seconds
            # The baseline's work, times what the candidate does of it.
            baseline = sum(row[f"baseline_{name}_seconds"] for name in USEFUL) * row.data_size / row.configured_size
            _mark(axes, baseline, place, "-", "one sequential process")
        _worker_rows(axes, self.counts, rows)
        axes.set_xlim(0, 1.05 * longest)
        axes.set_xlabel(f"seconds of all workers, {counted(int(rows.configured_size.max()), 'sample')}{self._each}")

    def time(self, axes: Axes, rows: pd.DataFrame) -> None:
        """Time against data size, a line for each worker count."""
        self._over_sizes(axes, rows, "seconds")
        shown = self._ranges["seconds"]
        logarithmic(axes, "y", shown.low / 1.25, shown.high * 1.25, seconds_ticks(shown.low, shown.high))
        axes.set_ylabel("seconds")

    def speedup(self, axes: Axes, rows: pd.DataFrame) -> None:
        """Speedup against data size, a line for each worker count."""
        self._over_sizes(axes, rows, "speedup")
        self._speedup_scale(axes)

    def efficiency(self, axes: Axes, rows: pd.DataFrame) -> None:
        """Efficiency against data size, a line for each worker count."""
        self._over_sizes(axes, rows, "efficiency")
        axes.axhline(1, color=GREY, lw=1, zorder=1)
        axes.set_ylim(0, 1.06 * max(1.0, self._ranges["efficiency"].high))
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        axes.set_ylabel("efficiency")

    def by_workers(self, axes: Axes, rows: pd.DataFrame) -> None:
        """Speedup against workers with the ideal line, a line for each data size; numbers for the largest."""
        low, high = self.counts[0] / 1.3, max(self.counts[-1] * 1.45, self._most_workers * 1.3)
        lines = _groups(rows, "configured_size")
        for shift, (size, line) in zip(_shifts(len(lines)), lines, strict=True):
            name = counted(size, "sample") + self._each
            _line(axes, line, "speedup", line.workers * shift, self._configured_sizes[size], name)
        self._ideal(axes, low, high)
        largest = rows[(rows.configured_size == rows.configured_size.max()) & (rows.workers > 1)]
        best = self._best_sequential[largest.index].mean()
        if not math.isnan(best):
            axes.axhline(best, color=TEXT, ls=":", lw=1.5, zorder=1)
            _name(axes, f"best sequential process: {best:.2f}", high, best, (-3, -4), ha="right", va="top")
        if rows.oversubscribed.any():
            first = rows.workers[rows.oversubscribed.astype(bool)].min()
            below = max((count for count in self.counts if count < first), default=first / 2)
            left, right = (first * below) ** 0.5, self.counts[-1] * 1.45
            axes.axvspan(left, right, color=SHADE, zorder=0, lw=0)
            across = axes.get_xaxis_transform()
            place = {"ha": "center", "va": "top", "transform": across, **BESIDE}
            axes.text((left * right) ** 0.5, 0.98, "more threads\nthan cores", **place)
        for _, row in line[line.workers > 1].iterrows():
            _name(axes, f"{row.speedup:.2f}", row.workers * shift, row.speedup, (8, 4), fontweight="bold")
        if self._verdict is not None:
            outlook.paint(axes, self._verdict)
        logarithmic(axes, "x", low, high, sparse(sorted({*self.counts, int(self._most_workers)})))
        axes.set_xlabel("workers")
        self._speedup_scale(axes, self._most_speedup)

    def _ideal(self, axes: Axes, low: float, high: float) -> None:
        """Where the speedup is the number of workers; named above the points, where the line is shown longest."""
        axes.plot([low, high], [low, high], color=GREY, ls="--", lw=1.2, zorder=1)
        top = min(high, max(self._most_speedup, self._ranges["speedup"].high, 2.0))
        axes.text(
            top / 1.1,
            top / 1.1 * 1.04,
            "ideal",
            color=GREY,
            ha="right",
            va="bottom",
            rotation=45,
            rotation_mode="anchor",
            transform_rotates_text=True,
            **BESIDE,
        )

    def losses(self, axes: Axes, rows: pd.DataFrame) -> None:
        """The efficiency tree of each worker count, at the most samples."""
        size, counts = int(rows.configured_size.max()), [count for count in self.counts if count > 1]
        known = rows[(rows.configured_size == size) & (rows.workers > 1) & rows.load_balance.notna()]
        losses.paint(axes, known, counts)
        _worker_rows(axes, counts, rows)
        axes.set_xlabel(f"share of the ideal speedup, {counted(size, 'sample')}{self._each}")

    def _over_sizes(self, axes: Axes, rows: pd.DataFrame, column: str) -> None:
        """One line a worker count over data sizes."""
        lines = _groups(rows, "workers")
        for shift, (workers, line) in zip(_shifts(len(lines)), lines, strict=True):
            name = counted(workers, "worker") + ("*" if line.oversubscribed.any() else "")
            _line(axes, line, column, line.data_size * shift, self._workers[workers], name)
        ticks = sparse(self.sizes)
        logarithmic(axes, "x", self.sizes[0] / 1.25, self.sizes[-1] * 1.25, ticks)
        axes.set_xlabel("training samples")

    def _speedup_scale(self, axes: Axes, most: float = 1.0) -> None:
        """From the least mark to the greatest, 1 and the best sequential process among them."""
        shown, best = self._ranges["speedup"], self._best_sequential
        low, high = min(1, shown.low) / 1.15, max(most, shown.high, best.max()) * 1.15
        axes.axhline(1, color=GREY, lw=1, zorder=1)
        logarithmic(axes, "y", low, high, ratio_ticks(low, high))
        axes.set_ylabel("speedup (1 = no faster)")


def _line(axes: Axes, line: pd.DataFrame, column: str, places: pd.Series, style: Style, name: str) -> None:
    """Points with their intervals; open ones and dashes have more threads than cores."""
    color, marker = style
    crowded = line.oversubscribed.astype(bool)
    look: dict[str, Any] = {"ls": "--", "mfc": "white"} if crowded.all() else {"ls": "-"}
    values, low, high = (line[f"{column}{end}"].astype(float) for end in ("", "_low", "_high"))
    axes.errorbar(places, values, [values - low, high - values], fmt="none", color=color, capsize=3)
    axes.plot(places, values, color=color, marker=marker, lw=1.8, zorder=3, label=name, **look)
    axes.plot(places[crowded], values[crowded], color=color, marker=marker, mfc="white", ls="none", zorder=3)


def _interval(axes: Axes, row: pd.Series, place: float) -> None:
    """The interval of a bar of seconds, where it is known."""
    value, low, high = row.seconds, row.seconds_low, row.seconds_high
    if not math.isnan(low):
        axes.errorbar(value, place, xerr=[[value - low], [high - value]], color=TEXT, capsize=4)


def _mark(axes: Axes, seconds: float, place: float, line: str, label: str) -> None:
    """A line above and below a bar, which hides nothing of it; a dotted one is whole, to be told from that."""
    if not math.isnan(seconds):
        ends = [(-0.45, -0.31), (0.31, 0.45)] if line == "-" else [(-0.45, 0.45)]
        for low, high in ends:
            axes.vlines(seconds, place + low, place + high, color=TEXT, lw=2, ls=line, label=label, zorder=4)


def _name(axes: Axes, text: str, x: float, y: float, offset: tuple[float, float], **place: Any) -> None:
    """Words beside what they name; their white edge keeps them apart from lines."""
    edge = [withStroke(linewidth=3, foreground="white")]
    axes.annotate(text, (x, y), offset, textcoords="offset points", path_effects=edge, **BESIDE, **place)


def _worker_rows(axes: Axes, counts: list[int], rows: pd.DataFrame) -> None:
    """A row of the panel for each worker count, the least on top."""
    crowded = set(rows.workers[rows.oversubscribed.astype(bool)])
    axes.set_yticks(range(len(counts)), [f"{count}{'*' * (count in crowded)}" for count in counts])
    axes.set_ylim(len(counts) - 0.45, -0.55)
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    axes.set_ylabel("workers")


def _groups(rows: pd.DataFrame, column: str) -> list[tuple[int, pd.DataFrame]]:
    """The rows of each value of a column, in its order."""
    return [(int(value), rows[rows[column] == value]) for value in sorted(rows[column].unique())]


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def _shifts(count: int) -> list[float]:
    """Factors that set the points of several lines apart, so that their intervals can be read."""
    return [1.022 ** (place - (count - 1) / 2) for place in range(count)]
