"""The machine while a block ran: its own speed, and who else used it."""

from __future__ import annotations

import time
import timeit

import numpy as np
import psutil
from pydantic.dataclasses import dataclass

from dpexp import cgroups, server

PROBE_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Conditions:
    """Of one block. The probes are short, fixed pieces of work, done in the parent before the block."""

    arithmetic_seconds: float
    memory_seconds: float
    other_cores: float  # used by programs that are not ours, as a mean over the block
    stolen_cores: float  # that a virtual machine's host gave to others
    throttled_seconds: float  # that the cgroup's CPU quota held processes back


class Watch:
    """Looks at the machine from its creation until `conditions`."""

    def __init__(self, probe: bool = True) -> None:
        self._arithmetic, self._memory = (_arithmetic_seconds(), _memory_seconds()) if probe else (0.0, 0.0)
        self._started, self._own, self._server = time.monotonic(), time.process_time(), server.cpu_seconds()
        self._busy, self._stolen = _busy_seconds()
        self._throttled = cgroups.throttled_seconds()

    def conditions(self, workers_cpu_seconds: float) -> Conditions:
        """What was seen; `workers_cpu_seconds` is what our own workers, now ended, say that they used."""
        wall = max(time.monotonic() - self._started, 1e-3)
        busy, stolen = _busy_seconds()
        # The system knows better what workers used than they do: their start and end take time, too.
        own = time.process_time() - self._own + max(workers_cpu_seconds, server.cpu_seconds() - self._server)
        return Conditions(
            arithmetic_seconds=self._arithmetic,
            memory_seconds=self._memory,
            other_cores=max(0.0, busy - self._busy - own) / wall,
            stolen_cores=max(0.0, stolen - self._stolen) / wall,
            throttled_seconds=max(0.0, cgroups.throttled_seconds() - self._throttled),
        )


def _busy_seconds() -> tuple[float, float]:
    """Seconds of all cores so far that any program ran, and that were stolen."""
    times = psutil.cpu_times()
    busy = sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq"))
    return busy, getattr(times, "steal", 0.0)


def _arithmetic_seconds() -> float:
    """The least time of some rounds of a fixed calculation in cache, by one thread."""
    values = np.linspace(0.0, 1.0, 4096)
    return min(timeit.repeat(lambda: np.sin(values), number=200, repeat=PROBE_ROUNDS))


def _memory_seconds() -> float:
    """The least time of some rounds of a copy that no cache holds."""
    source, target = np.ones(2**22), np.ones(2**22)
    return min(timeit.repeat(lambda: np.copyto(target, source), number=1, repeat=PROBE_ROUNDS))
