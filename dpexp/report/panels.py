"""What a panel of each figure shows: one method a kind of figure."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from dpexp.phases import PHASES, USEFUL

# Okabe and Ito's palette, distinguishable without full colour vision; markers tell apart what greys alike.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
PHASE_COLORS = ("#56B4E9", "#0072B2", "#E69F00", "#D55E00", "#009E73")
GREY = "#767676"

Painter = Callable[[Axes, pd.DataFrame], None]
Style = tuple[str, str]
"""A colour and a marker."""


class Panels:
    """How each figure fills one panel with the rows of one series, on scales that all panels share."""

    def __init__(self, table: pd.DataFrame, usable_cores: int) -> None:
        self.usable_cores = usable_cores
        self.workers = _styles(table.workers)
        self.sizes = _styles(table.configured_size)
        self.limits = {
            column: 1.12 * float(table[[column, f"{column}_high"]].max().max()) for column in ("speedup", "efficiency")
        }
        # Of each size's bars: the highest mark of any panel, with room above.
        columns = ["seconds", "seconds_high", "baseline_seconds", "best_sequential_seconds"]
        marks = table.set_index("data_size")[columns]
        self.bar_limits = (1.08 * marks.max(axis=1).groupby("data_size").max()).to_dict()

    def bars(self, size: int) -> Painter:
        """Time by workers, with the baselines of each bar as lines; the numbers stand below."""

        def paint(axes: Axes, rows: pd.DataFrame) -> None:
            rows = rows[rows.data_size == size]
            for place, (_, row) in enumerate(rows.iterrows()):
                axes.bar(
                    place,
                    row.seconds,
                    width=0.6,
                    color=self.workers[row.workers][0],
                    hatch="///" if row.oversubscribed else None,
                    edgecolor="white",
                    yerr=_error(row, "seconds"),
                    capsize=4,
                )
                if not math.isnan(row.baseline_seconds) and row.baseline.startswith("sequential"):
                    label = "one sequential process" if place == 0 else ""
                    axes.hlines(row.baseline_seconds, place - 0.42, place + 0.42, color="black", lw=2, label=label)
                if not math.isnan(row.best_sequential_seconds):
                    label = f"best sequential process\n({row.best_sequential_threads} threads)" if place == 0 else ""
                    seconds = row.best_sequential_seconds
                    axes.hlines(seconds, place - 0.42, place + 0.42, color="black", lw=1.5, ls=":", label=label)
            axes.set_xticks(
                range(len(rows)), [f"{_starred(row)}\n{_digits(row.seconds)} s" for _, row in rows.iterrows()]
            )
            axes.set_xlabel("workers" + self._star(rows))
            axes.set_ylabel("seconds")
            axes.set_ylim(0, self.bar_limits[size])
            if axes.get_legend_handles_labels()[0]:
                _legend_beside(axes)

        return paint

    def time(self, axes: Axes, rows: pd.DataFrame) -> None:
        """Time against data size, a line for each worker count."""
        self._lines(axes, rows, "seconds")
        axes.set_yscale("log")
        axes.margins(y=0.1)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(FuncFormatter(_few_minor_labels))
        axes.grid(which="minor", axis="y", color="#f2f2f2")
        axes.set_ylabel("seconds")

    def speedup(self, axes: Axes, rows: pd.DataFrame) -> None:
        """Speedup against data size, a line for each worker count."""
        axes.axhline(1, color=GREY, lw=1)
        self._lines(axes, rows, "speedup")
        axes.set_ylabel("speedup (1 = no faster)")

    def efficiency(self, axes: Axes, rows: pd.DataFrame) -> None:
        """Efficiency against data size, a line for each worker count."""
        axes.axhline(1, color=GREY, lw=1)
        self._lines(axes, rows, "efficiency")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
        axes.set_ylabel("efficiency")

    def by_workers(self, axes: Axes, rows: pd.DataFrame) -> None:
        """Speedup against workers with the ideal line, a line for each data size."""
        counts = sorted(rows.workers.unique())
        axes.set_xlim(counts[0] / 1.25, counts[-1] * 1.4)
        axes.set_xscale("log", base=2)
        axes.plot(counts, counts, color=GREY, ls="--", lw=1.2, label="ideal")
        each = " a worker" if (rows.data_scope == "per_worker").all() else ""
        sizes = list(rows.groupby("configured_size"))
        for shift, (size, line) in zip(_shifts(len(sizes), 0.02), sizes, strict=True):
            self._line(axes, line, "speedup", line.workers * (1 + shift), self.sizes[size], f"{size:,}{each}")
        for _, row in line[line.workers > 1].iterrows():  # the most samples: its numbers, to read off
            axes.annotate(
                f"{row.speedup:.2f}",
                (row.workers * (1 + shift), row.speedup),
                (7, -3),
                textcoords="offset points",
                color=self.sizes[size][0],
                fontweight="bold",
            )
        if line.best_sequential_seconds.notna().any():
            speedup = (line.baseline_seconds / line.best_sequential_seconds).mean()
            axes.axhline(speedup, color="black", ls=":", lw=1.5, label="best sequential process")
        if rows.oversubscribed.any():
            first = rows.workers[rows.oversubscribed.astype(bool)].min()
            below = max([count for count in counts if count < first], default=first / 2)
            axes.axvspan((first * below) ** 0.5, counts[-1] * 1.4, color="#f3efe6", zorder=0, lw=0)
            axes.text(
                0.985, 0.98, "more threads\nthan cores", ha="right", va="top", color=GREY, transform=axes.transAxes
            )
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("workers")
        axes.set_ylabel("speedup")
        best = 1.1 * float((rows.baseline_seconds / rows.best_sequential_seconds).fillna(0).max())
        axes.set_ylim(0, max(self._top("speedup"), best, min(counts[-1], 1.15 * self.usable_cores)))
        _legend_beside(axes, "samples")

    def phases(self, axes: Axes, rows: pd.DataFrame) -> None:
        """Seconds of all workers together by phase, at the most samples; without loss all bars would be as long."""
        rows = rows[(rows.configured_size == rows.configured_size.max()) & rows.compute_seconds.notna()]
        names = []
        for place, (_, row) in enumerate(rows.iterrows()):
            names.append(_starred(row))
            left = 0.0
            for color, name in zip(PHASE_COLORS, PHASES, strict=True):
                if not math.isnan(row[f"{name}_seconds"]):
                    width = row[f"{name}_seconds"]
                    axes.barh(place, width, 0.6, left, color=color, label=name if place == 0 else None)
                    left += width
            # The baseline's work, times what the candidate does of it.
            baseline = sum(row[f"baseline_{name}_seconds"] for name in USEFUL)
            if not math.isnan(baseline):
                label = "one sequential process" if place == 0 else ""
                baseline *= row.data_size / row.configured_size
                axes.vlines(baseline, place - 0.42, place + 0.42, color="black", lw=2, label=label)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.grid(axis="x")
        axes.grid(visible=False, axis="y")
        axes.set_ylabel("workers")
        axes.set_xlabel(f"seconds of all workers, {rows.data_size.max():,} samples" + self._star(rows))
        _legend_beside(axes)

    def _lines(self, axes: Axes, rows: pd.DataFrame, column: str) -> None:
        """One line a worker count over data sizes; points are set apart so that intervals can be read."""
        sizes = sorted(rows.data_size.unique())
        axes.set_xlim(sizes[0] / 1.15, sizes[-1] * 1.15)
        axes.set_xscale("log")
        for shift, (workers, line) in zip(_shifts(rows.workers.nunique(), 0.02), rows.groupby("workers"), strict=True):
            name = f"{workers}*" if line.oversubscribed.any() else f"{workers}"
            self._line(axes, line, column, line.data_size * (1 + shift), self.workers[workers], name)
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(axis="x", which="minor", length=0)
        axes.set_xlabel("training samples" + self._star(rows))
        if column != "seconds":
            axes.set_ylim(0, self._top(column))
        _legend_beside(axes, "workers")

    def _line(self, axes: Axes, line: pd.DataFrame, column: str, places: pd.Series, style_of: Style, name: str) -> None:
        (color, marker), values = style_of, line[column].astype(float)
        style = "--" if line.oversubscribed.all() else "-"
        axes.plot(places, values, color=color, marker=marker, lw=1.8, ls=style, label=name)
        for place, (_, row) in zip(places, line.iterrows(), strict=True):
            axes.errorbar(
                place,
                row[column],
                yerr=_error(row, column),
                color=color,
                marker=marker,
                mfc="white" if row.oversubscribed else color,
                capsize=3,
            )

    def _star(self, rows: pd.DataFrame) -> str:
        return f"    (* more threads than the {self.usable_cores} usable cores)" if rows.oversubscribed.any() else ""

    def _top(self, column: str) -> float:
        return max(self.limits[column], 1.12)


def _styles(values: pd.Series) -> dict[Any, Style]:
    """A colour and a marker for each value, the same in all figures."""
    found = enumerate(sorted(values.unique()))
    return {value: (COLORS[at % len(COLORS)], MARKERS[at % len(MARKERS)]) for at, value in found}


def _legend_beside(axes: Axes, title: str | None = None) -> None:
    """Beside the panel: within, no place is free for sure."""
    axes.legend(title=title, loc="upper left", bbox_to_anchor=(1.0, 1.02))


def _starred(row: pd.Series) -> str:
    return f"{row.workers}{'*' if row.oversubscribed else ''}"


def _error(row: pd.Series, column: str) -> list[list[float]] | None:
    value, low, high = row[column], row[f"{column}_low"], row[f"{column}_high"]
    return None if math.isnan(low) or math.isnan(value) else [[value - low], [high - value]]


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def _shifts(count: int, step: float) -> list[float]:
    return [step * (place - (count - 1) / 2) for place in range(count)]


def _few_minor_labels(value: float, _: int) -> str:
    return f"{value:g}" if f"{value:.0e}"[0] in "25" else ""
