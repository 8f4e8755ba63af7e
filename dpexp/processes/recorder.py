"""Records where the time of each step goes, in one worker."""

from __future__ import annotations

import time
from array import array

import numpy as np

from dpexp.phases import DATA, PHASES
from dpexp.processes.heartbeat import heartbeat


class Recorder:
    """Adds up seconds by phase and step. Entering a phase costs about a microsecond."""

    def __init__(self) -> None:
        self._steps = array("f")  # one step after the other, a value a phase
        self._partial: list[int] = []  # which of them had fewer samples
        self._row = [0.0] * len(PHASES)
        self._phase = DATA
        self._last = 0.0

    def start(self) -> None:
        """The timed region begins, with the data of a step."""
        self._phase = DATA
        self._last = time.perf_counter()

    def enter(self, phase: int) -> None:
        """From now on, time belongs to `phase`."""
        now = time.perf_counter()
        self._row[self._phase] += now - self._last
        self._last, self._phase = now, phase
        heartbeat.phase(phase)

    def move_since(self, started: float, source: int, target: int) -> None:
        """The time from `started` until this phase began was counted as `source` and belongs to `target`."""
        seconds = max(0.0, self._last - started)
        self._row[source] -= seconds
        self._row[target] += seconds

    def end_step(self, partial: bool = False) -> None:
        """One optimizer update is complete; that of a `partial` batch had fewer samples than others."""
        self.enter(DATA)
        if partial:
            self._partial.append(len(self._steps) // len(PHASES))
        self._steps.extend(self._row)
        self._row = [0.0] * len(PHASES)
        heartbeat.step()

    def summary(self, all_steps: int) -> dict[str, dict[str, float]]:
        """Of each phase, and of the whole `step`: `seconds` in all, and `median`, `p95` and `p99` over the steps.

        The total is that of `all_steps`, if those not recorded took as long. Empty when no step was recorded.
        """
        steps = self._table()
        if not len(steps):
            return {}
        columns = {"step": steps.sum(1), **dict(zip(PHASES, steps.T, strict=True))}
        return {name: _distribution(values, all_steps) for name, values in columns.items()}

    def steps(self, most: int) -> list[list[float]]:
        """Of each step of a whole batch its seconds by phase; of more than `most` steps an even choice."""
        steps = np.delete(self._table(), self._partial, axis=0)
        chosen = np.linspace(0, len(steps) - 1, min(most, len(steps))).astype(int)
        return steps[chosen].tolist()  # type: ignore[no-any-return]

    def partial_steps(self) -> list[float]:
        """The seconds of each step of a batch with fewer samples."""
        return self._table()[self._partial].sum(1).tolist()  # type: ignore[no-any-return]

    def _table(self) -> np.ndarray:
        """The seconds (steps, phases)."""
        return np.asarray(self._steps, dtype=float).reshape(-1, len(PHASES))


class NoRecorder(Recorder):
    """Keeps no times, for warm-up and for `measurement.phases=false`; the heartbeat goes on."""

    def enter(self, phase: int) -> None:
        """Nothing is recorded."""
        heartbeat.phase(phase)

    def end_step(self, partial: bool = False) -> None:
        """Nothing is recorded."""
        heartbeat.step()


def _distribution(values: np.ndarray, all_steps: int) -> dict[str, float]:
    median, p95, p99 = np.percentile(values, (50, 95, 99))
    return {"seconds": float(values.mean()) * all_steps, "median": float(median), "p95": float(p95), "p99": float(p99)}
