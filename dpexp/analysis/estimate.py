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
    """A value with its interval; `low` and `high` are NaN if a single sample has no spread."""

    value: float
    low: float
    high: float

    def text(self, spec: str, unit: str = "", to: str = " to ") -> str:
        """Return the value, and its interval if it has one: 1.02 (0.98 to 1.06); a dash for NaN."""
        numbers = (self.value, self.low, self.high)
        value, low, high = (format(number, spec if number < 1000 else ",.0f") for number in numbers)
        interval = "" if math.isnan(self.low) else f" ({low}{to}{high})"
        return f"{value}{unit}{interval}" if self.is_known else "-"

    def __format__(self, spec: str) -> str:
        return self.text(spec)

    def scaled(self, factor: float) -> Estimate:
        """The estimate of `factor` times the quantity."""
        return Estimate(self.value * factor, self.low * factor, self.high * factor)

    @property
    def precision(self) -> float:
        """Half the width of the interval, as a share of the value; NaN if there is none."""
        return math.sqrt(self.high / self.low) - 1

    @property
    def is_known(self) -> bool:
        """Whether the value was measured."""
        return not math.isnan(self.value)


UNKNOWN = Estimate(math.nan, math.nan, math.nan)


def geometric_mean(values: Sequence[float], level: float = 0.95) -> Estimate:
    """Geometric mean of positive values with Student's t interval of the mean log."""
    logs = np.log(np.asarray(values, dtype=float))
    dof = len(logs) - 1
    half_width = t_quantile(level, dof) * float(logs.std(ddof=1)) / math.sqrt(len(logs)) if dof else math.nan
    return from_log(float(logs.mean()), half_width)


def from_log(log: float, half_width: float) -> Estimate:
    """Return the estimate whose log has an interval of +- `half_width`."""
    return Estimate(math.exp(log), math.exp(log - half_width), math.exp(log + half_width))


@functools.lru_cache(maxsize=1024)  # the slowest part of an estimate
def t_quantile(level: float, dof: float) -> float:
    """The two-sided quantile of Student's t."""
    return float(stdtrit(dof, (1 + level) / 2))
