"""Which law of scaling to believe: the one that best predicts worker counts that it has not seen; or none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dpexp.analysis.decision.laws import Law, Points, laws
from dpexp.analysis.row import Row

LEAST_COUNTS = 3  # beside 1: to fit a law of one parameter to two, and to predict the third
WORST_ERROR = 0.1  # of a held-out count that a law may have
CONTRADICTED = 0.01  # the probability of misfits below which a law is
DRAWS = 100


@dataclass(frozen=True)
class Fit:
    """A law with the parameters (k,) that fit best, and others (DRAWS, k) that the measurements' intervals allow."""

    law: Law
    parameters: np.ndarray
    draws: np.ndarray
    held_out_error: float  # the root mean square of log errors


@dataclass(frozen=True)
class Scaling:
    """The laws that the measurements allow, the chosen one first."""

    fits: list[Fit]
    most_workers: int  # measured

    def curve(self, workers: Sequence[float]) -> np.ndarray:
        """Speedups (3, n): of the chosen law, and the least and the most of the 95 % intervals of all of them."""
        counts = np.asarray(workers, dtype=float)
        chosen = self.fits[0]
        middle = chosen.law.speedup(counts, chosen.parameters)
        ends = []
        for fit in self.fits:
            ends.append(np.percentile([fit.law.speedup(counts, draw) for draw in fit.draws], [2.5, 97.5], axis=0))
        low, high = np.min(ends, axis=(0, 1)), np.max(ends, axis=(0, 1))
        return np.array([middle, np.minimum(low, middle), np.maximum(high, middle)])


def contest(rows: Sequence[Row]) -> Scaling | None:
    """The laws for one series at one data size; None where there are too few worker counts, or none fits.

    Rows with more threads than cores don't count: they are about the scheduler. Each law is fitted without one worker
    count and predicts it, for each in turn. Among those whose error is above the best one's by no more than the noise
    of the measurements, the one with the fewest parameters is chosen. Others stay in the band, as long as the
    measurements don't contradict them (chi-squared, 1 %). Intervals come from draws of the measured speedups
    (log-normal, from their own intervals over restarts), each with a fit of its own; where all laws miss the
    held-out counts by more than the noise, the draws are as much wider.
    """
    points = _points(rows)
    if len(points) < LEAST_COUNTS:
        return None
    competing = [law for law in laws(rows[0].batch_scope or "") if len(law.bounds) < len(points)]
    errors = {law.name: _held_out_error(law, points) for law in competing}
    best = min(errors.values())
    if best > WORST_ERROR:
        return None
    noise = float(np.sqrt(np.mean(points.errors**2)))
    good = [law for law in competing if errors[law.name] <= best + noise]
    chosen = min(good, key=lambda law: (len(law.bounds), errors[law.name]))
    found = {law.name: law.fit(points) for law in competing}
    allowed = [law for law in competing if law is not chosen and law.misfit(points, found[law.name]) >= CONTRADICTED]
    generator = np.random.default_rng(0)
    drawn = [_drawn(points, max(noise, best) / noise, generator) for _ in range(DRAWS)]
    fits = []
    for law in (chosen, *allowed):
        parameters = found[law.name]
        draws = np.array([law.fit(draw, parameters) for draw in drawn])
        fits.append(Fit(law, parameters, draws, errors[law.name]))
    return Scaling(fits, int(points.workers.max()))


def _points(rows: Sequence[Row]) -> Points:
    good = [row for row in rows if row.workers not in (None, 1) and not math.isnan(row.speedup.low)]
    good = [row for row in good if not row.oversubscribed and row.strategy != "emulated"]
    good.sort(key=lambda row: row.workers or 0)
    workers, speedups = [float(row.workers or 0) for row in good], [row.speedup.value for row in good]
    errors = [max(math.log(row.speedup.high / row.speedup.low) / 2 / 1.96, 1e-4) for row in good]
    columns = [(name, float) for name in ("workers", "speedups", "errors")]
    return np.rec.fromarrays([workers, speedups, errors], dtype=columns)


def _held_out_error(law: Law, points: Points) -> float:
    """The root mean square of the errors of log speedups, each predicted from all other counts."""
    errors = []
    for at in range(len(points)):
        others = np.arange(len(points)) != at
        predicted = law.speedup(points.workers[[at]], law.fit(points[others]))
        errors.append(math.log(max(float(predicted[0]), 1e-9) / points.speedups[at]))
    return math.sqrt(sum(error**2 for error in errors) / len(errors))


def _drawn(points: Points, wider: float, generator: np.random.Generator) -> Points:
    drawn: Points = points.copy()
    drawn.speedups *= np.exp(generator.normal(0, wider * points.errors))
    return drawn
