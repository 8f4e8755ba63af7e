"""What a panel of each figure shows: one method a kind of figure."""

from __future__ import annotations

import math
from collections.abc import Callable

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from dpexp.phases import PHASES, USEFUL

# Okabe and Ito's palette, distinguishable without full colour vision.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000")
PHASE_COLORS = ("#56B4E9", "#0072B2", "#E69F00", "#D55E00", "#009E73")
GREY = "#767676"

Painter = Callable[[Axes, pd.DataFrame], None]


class Panels:
    """How each figure fills one panel with the rows of one series, on scales that all panels share."""

    def __init__(self, table: pd.DataFrame, usable_cores: int) -> None:
        self.usable_cores = usable_cores
        worker_counts = sorted(table.workers.unique())
        self.color = {count: COLORS[i % len(COLORS)] for i, count in enumerate(worker_counts)}
        self.size_color = {
            size: COLORS[i % len(COLORS)] for i, size in enumerate(sorted(table.configured_size.unique()))
        }
        self.limits = {
            column: 1.12 * float(table[[column, f"{column}_high"]].max().max()) for column in ("speedup", "efficiency")
        }
        # Of each size's bars: the highest mark of any panel, with room above.
        columns = ["seconds", "seconds_high", "baseline_seconds", "best_sequential_seconds"]
        marks = table.set_index("data_size")[columns]
        self.bar_limits = (1.08 * marks.max(axis=1).groupby("data_size").max()).to_dict()

    def bars(self, size: int) -> Painter:
        """Time by workers, with the baseline of each bar as a line."""

        def paint(axes: Axes, rows: pd.DataFrame) -> None:
            rows = rows[rows.data_size == size]
            for place, (_, row) in enumerate(rows.iterrows()):
                axes.bar(
                    place,
                    row.seconds,
                    width=0.6,
                    color=self.color[row.workers],
                    hatch="///" if row.oversubscribed else None,
                    edgecolor="white",
                    yerr=_error(row, "seconds"),
                    capsize=4,
                )
                axes.annotate(
                    f"{_three_digits(row.seconds)} s",
                    (place, 0),
                    (0, 7),  # at the foot of the bar, where no mark crosses it
                    textcoords="offset points",
                    ha="center",
                    color="white",
                    fontweight="bold",
                    bbox={"facecolor": self.color[row.workers], "edgecolor": "none", "pad": 1.5},
                )
                if not math.isnan(row.baseline_seconds) and row.baseline.startswith("sequential"):
                    label = "its sequential baseline" if place == 0 else ""
                    axes.hlines(row.baseline_seconds, place - 0.42, place + 0.42, color="black", lw=2, label=label)
                if not math.isnan(row.best_sequential_seconds):
                    threads = row.best_sequential_threads
                    label = f"the best sequential, {threads} thread{'s' * (threads > 1)}"
                    label = label if place == 0 else ""
                    axes.hlines(
                        row.best_sequential_seconds,
                        place - 0.42,
                        place + 0.42,
                        color="black",
                        lw=1.5,
                        ls=":",
                        label=label,
                    )
            names = [f"{row.workers}{'*' if row.oversubscribed else ''}" for _, row in rows.iterrows()]
            axes.set_xticks(range(len(rows)), names)
            axes.set_xlabel("workers" + self._star(rows))
            axes.set_ylabel("seconds")
            axes.set_ylim(0, self.bar_limits[size])
            if axes.get_legend_handles_labels()[0]:
                axes.legend(loc="upper right", bbox_to_anchor=(1, 1.1))

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
        axes.plot(counts, counts, color=GREY, ls="--", lw=1.2, label="ideal")
        shifts = _shifts(rows.configured_size.nunique(), 0.05)
        each = " a worker" if (rows.data_scope == "per_worker").all() else ""
        for shift, (size, line) in zip(shifts, rows.groupby("configured_size"), strict=True):
            self._line(axes, line, "speedup", line.workers + shift, self.size_color[size], f"{size:,}{each}")
        tops = rows.groupby("workers")[["speedup", "speedup_high"]].max().max(axis=1)
        for _, row in line[line.workers > 1].iterrows():  # the most samples: its numbers, to read off
            axes.annotate(
                f"{row.speedup:.2f}",
                (row.workers + shift, tops[row.workers]),
                (0, 5),
                textcoords="offset points",
                ha="center",
                color=self.size_color[size],
                fontweight="bold",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
            )
        if line.best_sequential_seconds.notna().any():
            own = (line.baseline_seconds / line.best_sequential_seconds).mean()
            axes.axhline(own, color="black", ls=":", lw=1.5, label="best sequential process")
        if rows.oversubscribed.any():
            first = rows.workers[rows.oversubscribed.astype(bool)].min()
            start = max([count + 0.3 for count in counts if count < first], default=first - 0.4)
            axes.axvspan(start, counts[-1] + 0.4, color="#f3efe6", zorder=0, lw=0)
            axes.text(
                0.985, 0.98, "more threads than cores", ha="right", va="top", color=GREY, transform=axes.transAxes
            )
        axes.set_xlim(counts[0] - 0.4, counts[-1] + 0.4)
        axes.set_xticks(counts)
        axes.set_xlabel("workers")
        axes.set_ylabel("speedup")
        best = 1.1 * float((rows.baseline_seconds / rows.best_sequential_seconds).fillna(0).max())
        axes.set_ylim(0, max(self._top("speedup"), best, min(counts[-1], 1.15 * self.usable_cores)))
        axes.legend(title="samples", loc="upper left", bbox_to_anchor=(1.0, 1.02))  # beside: no place within is free

    def phases(self, axes: Axes, rows: pd.DataFrame) -> None:
        """Seconds of all workers together by phase, at the most samples; without loss all bars would be as long."""
        rows = rows[(rows.configured_size == rows.configured_size.max()) & rows.compute_seconds.notna()]
        names = []
        for place, (_, row) in enumerate(rows.iterrows()):
            names.append(f"{row.workers}{'*' if row.oversubscribed else ''}")
            left = 0.0
            for color, name in zip(PHASE_COLORS, PHASES, strict=True):
                if not math.isnan(row[f"{name}_seconds"]):
                    width = row[f"{name}_seconds"]
                    axes.barh(place, width, 0.6, left, color=color, label=name if place == 0 else None)
                    left += width
            # The baseline's own work, times what the candidate does of it.
            alone = sum(row[f"baseline_{name}_seconds"] for name in USEFUL)
            if not math.isnan(alone):
                label = "all of the sequential baseline's" if place == 0 else ""
                alone *= row.data_size / row.configured_size
                axes.vlines(alone, place - 0.42, place + 0.42, color="black", lw=2, label=label)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.grid(axis="x")
        axes.grid(visible=False, axis="y")
        axes.set_ylabel("workers")
        axes.set_xlabel(f"worker seconds, {rows.data_size.max():,} samples" + self._star(rows))
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=3, fontsize=9)

    def _lines(self, axes: Axes, rows: pd.DataFrame, column: str) -> None:
        """One line a worker count over data sizes; points are set apart so that intervals can be read."""
        sizes = sorted(rows.data_size.unique())
        axes.set_xscale("log")
        for shift, (workers, line) in zip(_shifts(rows.workers.nunique(), 0.02), rows.groupby("workers"), strict=True):
            name = f"{workers}*" if line.oversubscribed.any() else f"{workers}"
            self._line(axes, line, column, line.data_size * (1 + shift), self.color[workers], name)
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(axis="x", which="minor", length=0)
        axes.set_xlim(sizes[0] / 1.15, sizes[-1] * 1.15)
        axes.set_xlabel("training samples" + self._star(rows))
        if column != "seconds":
            axes.set_ylim(0, self._top(column))
        axes.legend(title="workers")

    def _line(self, axes: Axes, line: pd.DataFrame, column: str, places: pd.Series, color: str, name: str) -> None:
        values = line[column].astype(float)
        axes.plot(places, values, color=color, lw=1.8, ls="--" if line.oversubscribed.all() else "-", label=name)
        for place, (_, row) in zip(places, line.iterrows(), strict=True):
            axes.errorbar(
                place,
                row[column],
                yerr=_error(row, column),
                color=color,
                marker="o",
                mfc="white" if row.oversubscribed else color,
                capsize=3,
            )

    def _star(self, rows: pd.DataFrame) -> str:
        return f"    (* more threads than the {self.usable_cores} usable cores)" if rows.oversubscribed.any() else ""

    def _top(self, column: str) -> float:
        return max(self.limits[column], 1.12)


def _error(row: pd.Series, column: str) -> list[list[float]] | None:
    value, low, high = row[column], row[f"{column}_low"], row[f"{column}_high"]
    return None if math.isnan(low) or math.isnan(value) else [[value - low], [high - value]]


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def _shifts(count: int, step: float) -> list[float]:
    return [step * (place - (count - 1) / 2) for place in range(count)]


def _few_minor_labels(value: float, _: int) -> str:
    return f"{value:g}" if f"{value:.0e}"[0] in "25" else ""
