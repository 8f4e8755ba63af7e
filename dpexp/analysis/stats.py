"""Means, ratios and their intervals: pure functions of numbers.

Times are compared on the log scale: their noise is multiplicative, a ratio and its inverse get the same
interval, and the ratio of two geometric means is the geometric mean of the ratios.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Estimate:
    """A value with its interval; `low` and `high` are NaN where one sample says nothing about the spread."""

    value: float
    low: float
    high: float

    def scaled(self, factor: float) -> Estimate:
        """The estimate of `factor` times the quantity."""
        return Estimate(self.value * factor, self.low * factor, self.high * factor)

    @property
    def known(self) -> bool:
        """Whether there is a value."""
        return not math.isnan(self.value)


UNKNOWN = Estimate(math.nan, math.nan, math.nan)


def geometric_mean(values: Sequence[float], level: float = 0.95) -> Estimate:
    """Geometric mean of positive values with Student's t interval of the mean log."""
    logs = np.log(np.asarray(values, dtype=float))
    return _from_log(float(logs.mean()), _standard_error(logs), len(logs) - 1, level)


def paired_ratio(
    numerators: Sequence[float], denominators: Sequence[float], level: float = 0.95, pilot: int | None = None
) -> Estimate:
    """Geometric mean of the ratios of pairs, with the t interval of the mean log ratio.

    Pairing removes what both members of a block share, such as the machine's speed at that time. Where `pairs_needed`
    of the first `pilot` pairs decided how many there are, the interval has their few degrees of freedom, as Stein's
    has (see there). Its variance is the mean of theirs and all pairs': Stein's own, which takes theirs alone, covers
    too seldom where outliers come later. `tests/test_coverage.py` simulates both kinds of interval.
    """
    logs = _log_ratios(numerators, denominators)
    error, freedom = _standard_error(logs), len(logs) - 1
    if pilot is not None and len(logs) > pilot > 1:
        variance = (logs[:pilot].var(ddof=1) + logs.var(ddof=1)) / 2
        error, freedom = math.sqrt(float(variance) / len(logs)), pilot - 1
    return _from_log(float(logs.mean()), error, freedom, level)


def pairs_needed(
    numerators: Sequence[float], denominators: Sequence[float], precision: float, level: float = 0.95
) -> int:
    """How many pairs, the given ones included, make the interval of their ratio as narrow as +- `precision`.

    Two stages, after Stein (1945, "A two-sample test for a linear hypothesis whose power is independent of the
    variance"): the spread of the first pairs sets the number once. Looking at the interval after every pair, and
    stopping when it is narrow, would stop when the spread happens to look small, and cover too seldom.
    """
    logs = _log_ratios(numerators, denominators)
    quantile = _t_quantile(level, len(logs) - 1)
    return max(len(logs), math.ceil((quantile * float(logs.std(ddof=1)) / math.log1p(precision)) ** 2))


def unpaired_ratio(numerators: Sequence[float], denominators: Sequence[float], level: float = 0.95) -> Estimate:
    """Ratio of geometric means of two independent samples, with Welch's t interval (Welch 1947)."""
    above, below = (np.log(np.asarray(values, dtype=float)) for values in (numerators, denominators))
    difference = float(above.mean() - below.mean())
    if min(len(above), len(below)) < 2:
        return Estimate(math.exp(difference), math.nan, math.nan)
    squares = [_standard_error(logs) ** 2 for logs in (above, below)]
    if sum(squares) == 0:
        return _from_log(difference, 0.0, len(above) + len(below) - 2, level)
    freedom = sum(squares) ** 2 / sum(
        square**2 / (len(logs) - 1) for square, logs in zip(squares, (above, below), strict=True)
    )
    return _from_log(difference, math.sqrt(sum(squares)), freedom, level)


def _log_ratios(numerators: Sequence[float], denominators: Sequence[float]) -> np.ndarray:
    logs: np.ndarray = np.log(np.asarray(numerators, dtype=float) / np.asarray(denominators, dtype=float))
    return logs


def _standard_error(logs: np.ndarray) -> float:
    return float(logs.std(ddof=1) / math.sqrt(len(logs))) if len(logs) > 1 else math.nan


@functools.lru_cache(maxsize=1024)  # scipy takes longer for it than for all the rest
def _t_quantile(level: float, freedom: float) -> float:
    """Of Student's t, two-sided."""
    return float(stats.t.ppf((1 + level) / 2, freedom))


def _from_log(mean: float, standard_error: float, freedom: float, level: float) -> Estimate:
    if math.isnan(standard_error):
        return Estimate(math.exp(mean), math.nan, math.nan)
    half = _t_quantile(level, freedom) * standard_error
    return Estimate(math.exp(mean), math.exp(mean - half), math.exp(mean + half))
