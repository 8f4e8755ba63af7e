"""Records the time of each step by phase, in one worker."""

import time
from array import array

import numpy as np

from dpexp.phases import DATA, PHASES
from dpexp.processes.heartbeat import heartbeat


class Recorder:
    """Records seconds by phase and step, while it is on. Entering a phase costs about a microsecond."""

    def __init__(self, is_on: bool = True) -> None:
        self.is_on = is_on  # else it passes phases and steps on to the heartbeat only
        self._steps = array("f")  # one step after the other, a value per phase
        self._row = [0.0] * len(PHASES)
        self._phase = DATA
        self._last = 0.0

    def start(self) -> None:
        """Begin the timed region, with the data of a step."""
        self._phase = DATA
        self._last = time.perf_counter()

    def begin_phase(self, phase: int) -> None:
        """From now on, count time as `phase`."""
        if self.is_on:
            now = time.perf_counter()
            self._row[self._phase] += now - self._last
            self._last, self._phase = now, phase
        heartbeat.begin_phase(phase)

    def move_since(self, started: float, source: int, target: int) -> None:
        """Count the time from `started` to the beginning of this phase as `target` instead of `source`."""
        seconds = max(0.0, self._last - started)
        self._row[source] -= seconds
        self._row[target] += seconds

    def end_step(self) -> None:
        """Complete one optimizer update."""
        self.begin_phase(DATA)
        if self.is_on:
            self._steps.extend(self._row)
            self._row = [0.0] * len(PHASES)
        heartbeat.end_step()

    def phases(self, max_steps: int) -> dict[str, list[float]]:
        """Return the seconds of each phase in each step, by name; of at most `max_steps` steps, evenly spaced."""
        table = np.asarray(self._steps, dtype=float).reshape(-1, len(PHASES))
        chosen = np.linspace(0, len(table) - 1, min(max_steps, len(table))).astype(int)
        return dict(zip(PHASES, table[chosen].T.tolist(), strict=True))
