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


@dataclass(frozen=True)
class Estimate:
    """A value with its interval; `low` and `high` are NaN where one sample says nothing about the spread."""

    value: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        """The value and its interval, each as `spec` says: 1.02 (0.98 to 1.06)."""
        return f"{self.value:{spec}} ({self.low:{spec}} to {self.high:{spec}})"

    def scaled(self, factor: float) -> Estimate:
        """The estimate of `factor` times the quantity."""
        return Estimate(self.value * factor, self.low * factor, self.high * factor)

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


def _standard_error(logs: np.ndarray) -> float:
    return float(logs.std(ddof=1) / math.sqrt(len(logs))) if len(logs) > 1 else math.nan


@functools.lru_cache(maxsize=1024)  # scipy takes longer for it than for all the rest
def t_quantile(level: float, freedom: float) -> float:
    """Of Student's t, two-sided."""
    return float(stdtrit(freedom, (1 + level) / 2))


def _from_log(mean: float, standard_error: float, freedom: float, level: float) -> Estimate:
    if math.isnan(standard_error):
        return Estimate(math.exp(mean), math.nan, math.nan)
    half = t_quantile(level, freedom) * standard_error
    return Estimate(math.exp(mean), math.exp(mean - half), math.exp(mean + half))
