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
from scipy.special import stdtrit  # scipy.stats would take half a second to import

NORMAL_QUANTILE = 1.96  # of 95 %, two-sided
STOPPED_SHARE = 0.5  # of the probability outside the interval


@dataclass(frozen=True)
class Estimate:
    """A value with its interval; `low` and `high` are NaN where one sample says nothing about the spread."""

    value: float
    low: float
    high: float

    def scaled(self, factor: float) -> Estimate:
        """The estimate of `factor` times the quantity."""
        return Estimate(self.value * factor, self.low * factor, self.high * factor)

    def widened(self, deviation: float) -> Estimate:
        """With a standard deviation of the log that the sample does not show (a type B uncertainty, JCGM 100:2008)."""
        if not deviation or math.isnan(self.low):
            return self
        half = math.hypot(math.log(self.high / self.low) / 2, NORMAL_QUANTILE * deviation)
        return Estimate(self.value, self.value * math.exp(-half), self.value * math.exp(half))

    @property
    def precision(self) -> float:
        """Half the width of the interval, as a share of the value; NaN where there is none."""
        return math.sqrt(self.high / self.low) - 1

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
    numerators: Sequence[float], denominators: Sequence[float], level: float = 0.95, stopped: bool = False
) -> Estimate:
    """Geometric mean of the ratios of pairs, with the t interval of the mean log ratio.

    Pairing removes what both members of a block share. `stopped` says that pairs were added until the interval was
    narrow: to stop when the spread happens to look small costs coverage, which a wider interval gives back (half of the
    probability outside). `tests/test_coverage.py` simulates both kinds of interval.
    """
    logs = np.log(np.asarray(numerators, dtype=float) / np.asarray(denominators, dtype=float))
    if stopped:
        level = 1 - STOPPED_SHARE * (1 - level)
    return _from_log(float(logs.mean()), _standard_error(logs), len(logs) - 1, level)


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


def _standard_error(logs: np.ndarray) -> float:
    return float(logs.std(ddof=1) / math.sqrt(len(logs))) if len(logs) > 1 else math.nan


@functools.lru_cache(maxsize=1024)  # scipy takes longer for it than for all the rest
def _t_quantile(level: float, freedom: float) -> float:
    """Of Student's t, two-sided."""
    return float(stdtrit(freedom, (1 + level) / 2))


def _from_log(mean: float, standard_error: float, freedom: float, level: float) -> Estimate:
    if math.isnan(standard_error):
        return Estimate(math.exp(mean), math.nan, math.nan)
    half = _t_quantile(level, freedom) * standard_error
    return Estimate(math.exp(mean), math.exp(mean - half), math.exp(mean + half))
