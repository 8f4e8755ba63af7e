"""The figures: which there are, how they are laid out, and their files. One panel a series: no curve mixes settings."""

from __future__ import annotations

import io
import textwrap
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from dpexp.analysis.table import Summary
from dpexp.files import write_atomically
from dpexp.report.panels import Painter, Panels
from dpexp.report.sentences import warnings

STYLE = {
    "font.size": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "legend.frameon": False,
    "svg.hashsalt": "dpexp",
}

WIDTH = 8.0  # inches
MOST_SERIES, MOST_SIZES = 12, 24  # that are drawn: nobody reads more, and a figure takes half a second


def draw(summary: Summary, folder: Path) -> list[Path]:
    """Write every figure below `folder` as PNG and SVG; return the paths of the PNGs. Raises OSError."""
    table = summary.table[summary.table.status == "ok"]
    if table.empty:
        return []
    folder.mkdir(exist_ok=True)
    table, left_out = _readable(table)
    panels = Panels(table, summary.usable_cores or 1)
    figures: dict[str, tuple[str, Painter]] = {
        f"time_{size}": (f"Training time, {size:,} samples", panels.bars(size))
        for size in sorted(table.data_size.unique())
    }
    figures["time"] = ("Training time", panels.time)
    if table.speedup.notna().any():
        figures["speedup"] = ("Speedup over one sequential process", panels.speedup)
        figures["efficiency"] = ("Parallel efficiency: speedup / workers", panels.efficiency)
        figures["speedup_by_workers"] = ("Speedup against workers", panels.by_workers)
    if table.compute_seconds.notna().any():
        figures["phases"] = ("Where the workers' time goes", panels.phases)
    caption = _caption(summary, table) + left_out
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        return [
            _write(_figure(table, title, paint, caption, not name.startswith("time_")), folder / name)
            for name, (title, paint) in figures.items()
        ]


def _readable(table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The first series, and of the sizes an even choice with the least and the most; in words, what is left out."""
    series = list(table.series.unique())
    table = table[table.series.isin(series[:MOST_SERIES])]
    sizes = sorted(table.data_size.unique())
    chosen = sizes
    if len(sizes) > MOST_SIZES:
        chosen = [sizes[round(place * (len(sizes) - 1) / (MOST_SIZES - 1))] for place in range(MOST_SIZES)]
    drawn = table[table.data_size.isin(chosen)]
    left_out = ""
    if len(series) > MOST_SERIES or chosen is not sizes:
        left_out = f"; drawn: {drawn.series.nunique()} of {len(series):,} series, {len(chosen)} of {len(sizes):,} sizes"
    return drawn, left_out


def _figure(table: pd.DataFrame, title: str, paint: Painter, caption: str, shared: bool) -> Figure:
    """One panel a series, one below the other, on the same scales; bars have horizontal scales of their panel."""
    names = list(table.series.unique())
    figure = Figure(figsize=(WIDTH, 1.5 + 3.3 * len(names)), layout="constrained")
    panels = figure.subplots(len(names), 1, squeeze=False, sharex=shared, sharey=True)
    for name, axes in zip(names, panels.flat, strict=True):
        paint(axes, table[table.series == name])
        axes.set_title(name, loc="left")
        axes.tick_params(labelbottom=True)  # which shared axes leave out
    figure.suptitle(title, x=0.01, ha="left", fontsize=13.5, fontweight="bold")
    lines_of_text = textwrap.wrap(caption, int(15 * figure.get_figwidth()))
    figure.supxlabel("\n".join(lines_of_text), x=0.01, ha="left", fontsize=8.5, color="#444444")
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
    models = ", ".join(f"{model} on {data}" for model, data in sorted(set(zip(table.model, table.data, strict=True))))
    repeats = " to ".join(map(str, sorted({int(table.repeats.min()), int(table.repeats.max())})))
    threads = " or ".join(map(str, sorted(table.threads_per_worker.unique())))
    warned = "; with warnings: see the report" if warnings(summary) else ""
    return (
        f"{models}; {' / '.join(scopes)}; baseline: {' / '.join(baselines) or 'none'}; "
        f"mean and 95 % interval of {repeats} block{'s' * (repeats != '1')}; "
        f"{threads} thread{'s' * (threads != '1')} a worker; {summary.machine}{warned}"
    )


def _write(figure: Figure, path: Path) -> Path:
    for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix[1:], dpi=150, metadata=metadata)
        write_atomically(path.with_suffix(suffix), buffer.getvalue())
        figure.set_layout_engine("none")  # the next format keeps the layout, which takes time
    return path.with_suffix(".png")
