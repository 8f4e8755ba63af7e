"""What is concluded from the rows at the most samples of a single series: what to use, and what more would bring."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from dpexp.analysis.decision.choice import Choice, choose
from dpexp.analysis.decision.projection import Cluster, Projection, StepModel, worst_error
from dpexp.analysis.row import Row
from dpexp.analysis.table import Summary

MORE = 4  # times the most workers that were measured: what the report projects to


@dataclass(frozen=True)
class Verdict:
    """Conclusions; where one can't be drawn it is None."""

    choice: Choice | None
    projection: Projection | None  # to MORE times the workers, all on one host with as many cores


@functools.lru_cache(maxsize=4)
def verdict(summary: Summary) -> Verdict | None:
    """Of a summary with one series; None where there are several, or no row has several workers."""
    rows = at_most_samples(summary.good)
    if len({row.series for row in summary.good}) != 1 or all(row.workers == 1 for row in rows):
        return None
    return Verdict(choose(rows), _projection(rows))


def at_most_samples(rows: Sequence[Row]) -> list[Row]:
    """The rows at the largest data size."""
    largest = max((row.configured_size or 0 for row in rows), default=0)
    return [row for row in rows if row.configured_size == largest]


def largest_of_each_series(rows: Iterable[Row]) -> list[Row]:
    """Of each series the rows with several workers, at its largest data size."""
    several = [row for row in rows if row.workers != 1]
    return [row for _, of_one in groupby(several, lambda row: row.series) for row in at_most_samples(list(of_one))]


def _projection(rows: Sequence[Row]) -> Projection | None:
    counts = [row.workers or 1 for row in rows if not row.oversubscribed]
    try:
        model = StepModel(rows)
        return model.project(MORE * max(counts), Cluster(), worst_error(model.check())) if max(counts) > 1 else None
    except ValueError:  # nothing to project from
        return None
