"""The figures: which there are, how they are laid out, and their files. One panel a series: no curve mixes settings."""

from __future__ import annotations

import io
import math
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import matplotlib as mpl
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dpexp.analysis.table import Summary
from dpexp.errors import counted
from dpexp.machine.files import write_atomically
from dpexp.report.drawing.panels import Painter, Panels
from dpexp.report.drawing.scales import sparse
from dpexp.report.drawing.style import GREY, MATPLOTLIB
from dpexp.report.sentences import warnings

# Inches: narrow enough for a column of a paper, or a telephone, to show the text large enough to read.
WIDTH, LINES_HEIGHT, BAR_HEIGHT = 6.4, 3.2, 0.46
TITLE_HEIGHT, LEGEND_LINE, CAPTION_LINE = 0.36, 0.21, 0.15
CAPTION_CHARACTERS, SERIES_CHARACTERS = 110, 76  # in a line
MOST_SERIES, MOST_SIZES = 12, 24  # that are drawn: nobody reads more, and a figure takes half a second


@dataclass(frozen=True)
class Drawn:
    """A figure's title, and its PNG file, beside which lies the SVG."""

    title: str
    path: Path


def draw(summary: Summary, folder: Path) -> list[Drawn]:
    """Write every figure below `folder` as PNG and SVG. Raises OSError."""
    table = summary.table[summary.table.status == "ok"]
    if table.empty:
        return []
    folder.mkdir(exist_ok=True)
    table, left_out = _readable(table)
    panels = Panels(table)
    caption = _caption(summary, table) + left_out
    with mpl.rc_context(MATPLOTLIB):  # type: ignore[arg-type]
        return [
            Drawn(title, _write(_figure(table, title, paint, height, caption), folder / name))
            for name, (title, paint, height) in _kinds(table, panels).items()
        ]


def _kinds(table: pd.DataFrame, panels: Panels) -> dict[str, tuple[str, Painter, float]]:
    """Of each figure by name: title, painter, and the height of a panel."""
    bar_height = 0.75 + BAR_HEIGHT * len(panels.counts)
    found: dict[str, tuple[str, Painter, float]] = {}
    has_speedup = table.speedup.notna().any()
    if has_speedup:
        found["speedup_by_workers"] = ("Speedup against workers", panels.by_workers, LINES_HEIGHT)
    if (table.load_balance.notna() & table.computation_scaling.notna() & (table.workers > 1)).any():
        found["losses"] = ("Where the ideal speedup goes", panels.losses, bar_height)
    if has_speedup:
        found["efficiency"] = ("Parallel efficiency: speedup / workers", panels.efficiency, LINES_HEIGHT)
        found["speedup"] = ("Speedup against training samples", panels.speedup, LINES_HEIGHT)
    found["time"] = ("Training time against training samples", panels.time, LINES_HEIGHT)
    for size in panels.sizes:
        found[f"time_{size}"] = (f"Training time, {counted(size, 'sample')}", panels.bars(size), bar_height)
    return found


FigureName = Literal["speedup_by_workers", "losses", "efficiency", "speedup", "time"]


def paint(table: pd.DataFrame, name: FigureName, axes: Axes | None = None) -> Axes:
    """One figure of the rows of one series, with its legend, in `axes`, or in new ones of a figure of pyplot.

    Raises ValueError where the rows can't share a curve, or none was measured.
    """
    good = table[table.status == "ok"]
    if good.series.nunique() != 1:
        raise ValueError(f"a figure shows one series, not {good.series.nunique()}: choose rows by table.series")
    if axes is None:
        from matplotlib import pyplot  # which a notebook shows by itself; the report's figures do without it

        _, axes = pyplot.subplots(figsize=(WIDTH, LINES_HEIGHT), layout="constrained")
    with mpl.rc_context(MATPLOTLIB):  # type: ignore[arg-type]
        getattr(Panels(good), "by_workers" if name == "speedup_by_workers" else name)(axes, good)
        handles, labels = axes.get_legend_handles_labels()
        entries = dict(zip(labels, handles, strict=True))
        axes.legend(list(entries.values()), list(entries))
    return axes


def _readable(table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The first series, and of the sizes an even choice with the least and the most; in words, what is left out."""
    series = list(table.series.unique())
    table = table[table.series.isin(series[:MOST_SERIES])]
    sizes = sorted(table.data_size.unique())
    chosen = sparse(sizes, MOST_SIZES)
    drawn = table[table.data_size.isin(chosen)]
    left_out = ""
    if len(series) > MOST_SERIES or len(chosen) < len(sizes):
        left_out = f"; drawn: {drawn.series.nunique()} of {len(series):,} series, {len(chosen)} of {len(sizes):,} sizes"
    return drawn, left_out


def _figure(table: pd.DataFrame, title: str, paint: Painter, panel_height: float, caption: str) -> Figure:
    """Title and legend, then a panel for each series on the same scales, then the caption; none overlaps another."""
    names = list(table.series.unique())
    figure = Figure()
    panels = figure.subplots(len(names), 1, squeeze=False)[:, 0]
    entries: dict[str, Artist] = {}
    for name, axes in zip(names, panels, strict=True):
        paint(axes, table[table.series == name])
        axes.set_title(textwrap.fill(name, SERIES_CHARACTERS), loc="left")
        axes.set_xlabel(axes.get_xlabel() if axes is panels[-1] else "")
        handles, labels = axes.get_legend_handles_labels()
        entries = dict(zip(labels, handles, strict=True)) | entries
    columns = max(1, int(WIDTH / (0.55 + 0.068 * max(map(len, entries), default=0))))
    words = textwrap.fill(caption, CAPTION_CHARACTERS)
    head = TITLE_HEIGHT + LEGEND_LINE * math.ceil(len(entries) / columns)
    foot = CAPTION_LINE * (words.count("\n") + 1) + 0.12
    height = head + panel_height * len(names) + foot
    figure.set_size_inches(WIDTH, height)
    figure.set_layout_engine("constrained", rect=(0, foot / height, 1, 1 - (head + foot) / height))
    figure.text(0.012, 1 - 0.07 / height, title, va="top", fontsize=13.5, fontweight="bold")
    figure.text(0.012, 0.06 / height, words, va="bottom", fontsize=8, color=GREY, linespacing=1.2)
    if entries:
        place = (0.012, 1 - (TITLE_HEIGHT - 0.02) / height)
        figure.legend(
            list(entries.values()),
            list(entries),
            ncols=columns,
            loc="upper left",
            bbox_to_anchor=place,
            borderpad=0,
            borderaxespad=0,
        )
    return figure


def _caption(summary: Summary, table: pd.DataFrame) -> str:
    """What the figure shows, in what batch scope, over which baseline, and on what machine."""
    scopes = []
    for scope, rows in table.groupby("batch_scope"):
        sizes = sorted((rows.local_batch_size if scope == "per_worker" else rows.global_batch_size).unique().tolist())
        numbers = " or ".join(map(str, sizes))
        meaning = (
            "more workers make fewer updates" if scope == "per_worker" else "the same updates whatever the workers"
        )
        scopes.append(f"batch {numbers} {'per worker' if scope == 'per_worker' else 'in all'} ({meaning})")
    if (table.data_scope == "per_worker").any():
        scopes.append("data per worker: speedup is the ratio of throughputs")
    baselines = [name for name in table.baseline.unique() if name not in ("none", "itself")]
    pairs = sorted(set(zip(table.model, table.data, strict=True)))
    models = ", ".join(" on ".join(dict.fromkeys(pair)) for pair in pairs)  # a script has both itself
    repeats = " to ".join(map(str, sorted({int(table.repeats.min()), int(table.repeats.max())})))
    threads = " or ".join(map(str, sorted(table.threads_per_worker.unique())))
    cores = counted(summary.usable_cores or 0, "usable core")
    star = f"*, open markers, hatching: more threads than the {cores}; " if table.oversubscribed.any() else ""
    warned = "; warnings: see report.html" if warnings(summary) else ""
    return (
        f"{star}{models}; {' / '.join(scopes)}; baseline: {' / '.join(baselines) or 'none'}; "
        f"mean and 95 % interval of {repeats} block{'s' * (repeats != '1')}; "
        f"{threads} thread{'s' * (threads != '1')} per worker; {summary.machine}{warned}"
    )


def _write(figure: Figure, path: Path) -> Path:
    for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix[1:], dpi=200, metadata=metadata)
        write_atomically(path.with_suffix(suffix), buffer.getvalue())
        figure.set_layout_engine("none")  # the next format keeps the layout, which takes time
    return path.with_suffix(".png")
