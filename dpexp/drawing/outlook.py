"""Beyond the measured points: the law of scaling with its band, else a projection, which looks like no measurement."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from dpexp.decision.contest import Scaling
from dpexp.decision.projection import Projection
from dpexp.decision.verdict import Verdict
from dpexp.drawing.style import BAND, GREY, TEXT

EXTRAPOLATED = 2  # times the most measured workers: how far a law is drawn


def reach(verdict: Verdict | None) -> tuple[float, float]:
    """The most workers, and the greatest speedup, that are drawn."""
    workers, speedup = 1.0, 1.0
    if verdict is not None and isinstance(verdict.scaling, Scaling):
        workers = EXTRAPOLATED * verdict.scaling.most_workers
        speedup = float(verdict.scaling.curve([workers])[2, 0])
    elif verdict is not None and verdict.projection is not None:
        workers, speedup = verdict.projection.workers, verdict.projection.speedup.high
    return workers, speedup


def paint(axes: Axes, verdict: Verdict) -> None:
    """The law where there is one, else the projection."""
    if isinstance(verdict.scaling, Scaling):
        _law(axes, verdict.scaling)
    elif verdict.projection is not None:
        _projection(axes, verdict.projection)


def _law(axes: Axes, scaling: Scaling) -> None:
    workers = np.geomspace(1, EXTRAPOLATED * scaling.most_workers, 100)
    middle, low, high = scaling.curve(workers.tolist())
    axes.fill_between(workers, low, high, color=BAND, lw=0, zorder=0.5, label="95 % band")
    axes.plot(workers, middle, color=TEXT, lw=1.2, zorder=2, label=scaling.law.name.removeprefix("the "))


def _projection(axes: Axes, projection: Projection) -> None:
    speedup, workers = projection.speedup, projection.workers
    ends = [[speedup.value - speedup.low], [speedup.high - speedup.value]]
    look = {"color": GREY, "marker": "_", "ms": 12, "lw": 6, "alpha": 0.55, "ls": "none"}
    axes.errorbar([workers], [speedup.value], ends, elinewidth=8, capsize=0, **look)  # type: ignore[arg-type]
    axes.annotate(
        f"{speedup.low:.1f} to {speedup.high:.1f}\nprojected, on\nenough cores",
        (workers, speedup.low),
        (0, -4),
        ha="center",
        va="top",
        color=GREY,
        textcoords="offset points",
    )
