"""Where each step's time goes, in one worker: marks between phases, and what is kept of them."""

from __future__ import annotations

import time
from array import array

import numpy as np

DATA, COMPUTE, WAIT, COMMUNICATE, UPDATE = range(5)
NAMES = ("data", "compute", "wait", "communicate", "update")


class Recorder:
    """Adds up seconds by phase and step. A mark costs about a microsecond."""

    def __init__(self) -> None:
        self._steps = array("f")  # one step after the other, a value a phase
        self._row = [0.0] * len(NAMES)
        self._last = 0.0

    def start(self) -> None:
        """The timed region begins."""
        self._last = time.perf_counter()

    def mark(self, phase: int) -> None:
        """What has passed since the last mark belongs to `phase`."""
        now = time.perf_counter()
        self._row[phase] += now - self._last
        self._last = now

    def move_since(self, started: float, source: int, target: int) -> None:
        """What has passed between `started` and the last mark, counted as `source`, belongs to `target`."""
        seconds = max(0.0, self._last - started)
        self._row[source] -= seconds
        self._row[target] += seconds

    def end_step(self) -> None:
        """One optimizer update is complete."""
        self._steps.extend(self._row)
        self._row = [0.0] * len(NAMES)

    def summary(self) -> dict[str, dict[str, float]]:
        """Of each phase, and of the whole `step`: `seconds` in all, and `median`, `p95` and `p99` over the steps.

        Empty when no step was recorded.
        """
        steps = np.asarray(self._steps, dtype=float).reshape(-1, len(NAMES))
        if not len(steps):
            return {}
        columns = {"step": steps.sum(1), **dict(zip(NAMES, steps.T, strict=True))}
        return {name: _distribution(values) for name, values in columns.items()}


class NoRecorder(Recorder):
    """Records nothing, for warm-up and for training without instruments."""

    def start(self) -> None:
        """See Recorder."""

    def mark(self, phase: int) -> None:
        """See Recorder."""

    def move_since(self, started: float, source: int, target: int) -> None:
        """See Recorder."""

    def end_step(self) -> None:
        """See Recorder."""


def _distribution(values: np.ndarray) -> dict[str, float]:
    median, p95, p99 = np.percentile(values, (50, 95, 99))
    return {"seconds": float(values.sum()), "median": float(median), "p95": float(p95), "p99": float(p99)}
