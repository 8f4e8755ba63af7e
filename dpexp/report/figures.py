"""The figures: their titles, layout and files. Each series has its own panel: no curve mixes settings."""

import io
import math
import textwrap
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dpexp.analysis.table import Summary
from dpexp.errors import pluralize
from dpexp.machine.files import write_atomically
from dpexp.report.panels import GREY, DrawPanel, Panels, sparse

STYLE = Path(__file__).parent / "figures.mplstyle"

# Inches: narrow, so that the text is readable in a column of a paper or on a phone.
WIDTH, LINES_HEIGHT, BAR_HEIGHT = 6.4, 3.2, 0.46
TITLE_HEIGHT, LEGEND_LINE, CAPTION_LINE = 0.5, 0.21, 0.15
CAPTION_CHARACTERS, SERIES_CHARACTERS = 110, 76  # in a line
MAX_SERIES, MAX_SIZES = 12, 24  # more would be unreadable and are not drawn

TITLES = {  # by the name of the file, and of the method of Panels
    "speedup_by_workers": "Speedup against workers",
    "losses": "Where the ideal speedup goes",
    "efficiency": "Efficiency: speedup / workers",
    "speedup": "Speedup against training samples",
    "time": "Training time against training samples",
}


def draw(summary: Summary, folder: Path) -> dict[Path, str]:
    """Write every figure below `folder` as PNG and SVG; return their titles by PNG file. Raises OSError."""
    table = summary.table[summary.table.status == "ok"]
    if table.empty:
        return {}
    folder.mkdir(exist_ok=True)
    rows = len(table)
    table = table[table.series.isin(table.series.unique()[:MAX_SERIES])]
    table = table[table.data_size.isin(sparse(sorted(table.data_size.unique()), MAX_SIZES))]
    caption = _caption(summary, table) + (f"; drawn: {len(table):,} of {rows:,} rows" if len(table) < rows else "")
    panels, titles = Panels(table), dict[Path, str]()
    bars_height = 0.75 + BAR_HEIGHT * len(panels.counts)
    missing = set() if table.speedup.notna().any() else {"speedup_by_workers", "efficiency", "speedup"}
    if not (table.load_balance.notna() & table.computation_scaling.notna() & (table.workers > 1)).any():
        missing.add("losses")
    with mpl.rc_context(fname=STYLE):
        for name, title in TITLES.items():
            if name not in missing:
                height = bars_height if name == "losses" else LINES_HEIGHT
                figure = _figure(table, title, getattr(panels, name), height, caption)
                titles[_write(figure, folder / name)] = title
        for size in panels.sizes:
            title, of_size = f"Training time, {pluralize(size, 'sample')}", table[table.data_size == size]
            figure = _figure(of_size, title, Panels(of_size).bars, bars_height, caption)
            titles[_write(figure, folder / f"time_{size}")] = title
    return titles


def plot(table: pd.DataFrame, name: str = "speedup_by_workers", axes: Axes | None = None) -> Axes:
    """Draw one of the report's figures of one series into `axes` (None: new pyplot axes), and return it.

    Raises ValueError for another name, and for a table of several series: choose one with `table[table.series == ...]`.
    """
    if name not in TITLES:
        raise ValueError(f"no figure {name!r}: choose from {', '.join(TITLES)}")
    good = table[table.status == "ok"]
    if good.series.nunique() != 1:
        raise ValueError(f"a figure shows one series, not {good.series.nunique()}: choose rows by table.series")
    if axes is None:
        from matplotlib import pyplot  # notebooks show its figures; the report doesn't need it

        _, axes = pyplot.subplots(figsize=(WIDTH, LINES_HEIGHT), layout="constrained")
    with mpl.rc_context(fname=STYLE):
        getattr(Panels(good), name)(axes, good)
        entries = _entries(axes)
        axes.legend(list(entries.values()), list(entries))
    return axes


def _entries(axes: Axes) -> dict[str, Artist]:
    """Return the entries of a legend, each label once."""
    handles, labels = axes.get_legend_handles_labels()
    return dict(zip(labels, handles, strict=True))


def _figure(table: pd.DataFrame, title: str, draw_panel: DrawPanel, panel_height: float, caption: str) -> Figure:
    """Return a figure with title, legend, a panel for each series on the same scales, and a caption."""
    names = list(table.series.unique())
    figure = Figure(layout="constrained")
    panels = figure.subplots(len(names), 1, squeeze=False)[:, 0]
    entries: dict[str, Artist] = {}
    for name, axes in zip(names, panels, strict=True):
        draw_panel(axes, table[table.series == name])
        axes.set_title(textwrap.fill(name, SERIES_CHARACTERS), loc="left")
        axes.set_xlabel(axes.get_xlabel() if axes is panels[-1] else "")
        entries = _entries(axes) | entries
    columns = max(1, int(WIDTH / (0.55 + 0.068 * max(map(len, entries), default=0))))
    figure.legend(
        list(entries.values()),
        list(entries),
        ncols=columns,
        loc="outside upper left",
        title=title,
        title_fontproperties={"size": 13.5, "weight": "bold"},
        alignment="left",
        borderpad=0,
    )
    words = textwrap.fill(caption, CAPTION_CHARACTERS)
    figure.supxlabel(words, x=0.012, ha="left", fontsize=8, color=GREY, linespacing=1.2)
    around = TITLE_HEIGHT + LEGEND_LINE * math.ceil(len(entries) / columns) + CAPTION_LINE * len(words.splitlines())
    figure.set_size_inches(WIDTH, panel_height * len(names) + around)
    return figure


def _caption(summary: Summary, table: pd.DataFrame) -> str:
    """Return the caption: batch scope, baseline, machine, and other facts about all curves."""
    parts = [
        f"batch {_either(rows.local_batch_size)} per worker"
        if scope == "per_worker"
        else f"batch {_either(rows.global_batch_size)} in total"
        for scope, rows in table.groupby("batch_scope")
    ]
    if table.oversubscribed.any():
        cores = pluralize(summary.usable_cores or 0, "usable core")
        parts.insert(0, f"*, open markers, hatching: more threads than the {cores}")
    if (table.data_scope == "per_worker").any():
        parts.append("data per worker: speedup is the ratio of throughputs")
    models = sorted({" on ".join(dict.fromkeys(pair)) for pair in zip(table.model, table.data, strict=True)})
    parts += [
        ", ".join(models),  # for a script, both are "script"
        f"threads per worker: {_either(table.threads_per_worker)}",
        *(["baseline: one process in the same blocks"] if table.speedup.notna().any() else []),
        f"mean and 95 % interval of {_either(table.repeats)} blocks",
        f"{summary.machine}",
    ]
    return "; ".join(parts)


def _either(values: pd.Series) -> str:
    return " or ".join(map(str, sorted(values.unique())))


def _write(figure: Figure, path: Path) -> Path:
    for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix[1:], dpi=200, metadata=metadata)
        write_atomically(path.with_suffix(suffix), buffer.getvalue())
        figure.set_layout_engine(None)  # the next format keeps the layout, which takes time
    return path.with_suffix(".png")
