"""Laws of scaling: the speedup as a function of the number of workers, with parameters fitted to measurements.

- Amdahl 1967: a share of the work is done by one worker at a time.
- Gustafson 1988: that share takes as long whatever the number of workers.
- Universal Scalability Law (Gunther 1993): contention, and coherence, which grows with pairs of workers. It is also
  Karp and Flatt's serial fraction (1990), if that grows in a line with the workers: contention + coherence x workers.
- goodput's throughput (Pollux, Qiao et al. 2021; AdaptDL): computing and exchanging overlap in part.
- alpha-beta (Hockney 1994; ring of Patarasuk and Yuan 2009): an exchange takes rounds with a latency each, and the
  gradient's way over each link.

The last two know steps: times are in units of the step of one process. With a global batch of fixed size a worker
computes a share of a step that falls with the number of workers, towards a rest that doesn't.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import chdtrc

Curve = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""From numbers of workers (n,) and a law's parameters (k,) to values (n,)."""


Points = np.recarray[Any, Any]
"""Measured numbers of `workers` with their `speedups`, and the standard `errors` of the logs of these."""


@dataclass(frozen=True)
class Law:
    """A family of curves through speedup 1 at one worker; `bounds` are (lower, start, upper) of each parameter."""

    name: str
    bounds: dict[str, tuple[float, float, float]]
    speedup: Curve

    def misfit(self, points: Points, parameters: np.ndarray) -> float:
        """The probability of log speedups this far from the law, or farther, if it were true (chi-squared)."""
        off = self._off(points, parameters) / points.errors
        return float(chdtrc(max(1, len(points) - len(self.bounds)), float((off**2).sum())))

    def fit(self, points: Points, near: np.ndarray | None = None) -> np.ndarray:
        """The parameters (k,) with the least squares of log speedups, by their errors, within their bounds.

        The search starts `near` some, where these are given, and ends sooner: they are of other draws of the points.
        """
        from scipy.optimize import least_squares  # slow to import: few commands fit laws

        lower, start, upper = np.array(list(self.bounds.values())).T
        begin = start if near is None else np.clip(near, lower + 1e-9, upper - 1e-9)
        tolerance = 1e-6 if near is None else 1e-4
        weights = np.median(points.errors) / points.errors

        def residuals(parameters: np.ndarray) -> np.ndarray:
            return np.asarray(self._off(points, parameters) * weights)

        found = least_squares(residuals, begin, bounds=(lower, upper), x_scale=start, xtol=tolerance, ftol=tolerance)
        return np.asarray(found.x)

    def _off(self, points: Points, parameters: np.ndarray) -> np.ndarray:
        """Log speedups by the law, less the measured ones."""
        off: np.ndarray = np.log(np.maximum(self.speedup(points.workers, parameters), 1e-9) / points.speedups)
        return off


def laws(batch_scope: str) -> list[Law]:
    """All that compete for measurements with this `batch.scope`."""
    fixed = {"fixed_share": (0.0, 0.05, 1.0)} if batch_scope == "global" else {}

    def computing(workers: np.ndarray, p: np.ndarray) -> np.ndarray:
        return np.asarray(p[-1] + (1 - p[-1]) / workers) if fixed else np.ones(len(workers))

    def of_step(workers: np.ndarray, step: np.ndarray) -> np.ndarray:
        return np.asarray((1.0 if fixed else workers) / step)

    def alpha_beta(workers: np.ndarray, p: np.ndarray) -> np.ndarray:
        slower = np.where(workers > 1, p[0], 1.0)
        return np.asarray(slower * computing(workers, p) + 2 * (workers - 1) * (p[1] + p[2] / workers))

    def overlapped(workers: np.ndarray, p: np.ndarray) -> np.ndarray:
        exchange = np.where(workers > 1, p[0] + p[1] * np.maximum(workers - 2, 0), 0.0)
        step: np.ndarray = (computing(workers, p) ** p[2] + exchange ** p[2]) ** (1 / p[2])
        return step

    share, time = (0.0, 0.05, 1.0), (0.0, 0.05, 100.0)
    return [
        Law("Amdahl's law", {"serial_share": share}, lambda w, p: 1 / (p[0] + (1 - p[0]) / w)),
        Law("Gustafson's law", {"serial_share": share}, lambda w, p: w - p[0] * (w - 1)),
        Law(
            "the Universal Scalability Law",
            {"contention": share, "coherence": (0.0, 0.001, 1.0)},
            lambda w, p: w / (1 + p[0] * (w - 1) + p[1] * w * (w - 1)),
        ),
        Law(
            "the goodput model",
            {"exchange": time, "exchange_per_worker": (0.0, 0.01, 100.0), "overlap": (1.0, 1.5, 10.0)} | fixed,
            lambda w, p: of_step(w, overlapped(w, p)),
        ),
        Law(
            "the alpha-beta model",
            {"slowdown": (0.5, 1.05, 10.0), "alpha": (0.0, 0.005, 10.0), "beta": time} | fixed,
            lambda w, p: of_step(w, alpha_beta(w, p)),
        ),
    ]
