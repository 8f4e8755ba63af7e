"""The load of other programs on the machine during a block."""

import time

import psutil

from dpexp.machine import cgroups
from dpexp.processes import fork_server
from dpexp.results.schema import Conditions


class Watch:
    """Watches the machine from its creation until `conditions`."""

    def __init__(self) -> None:
        self._started, self._main_cpu = time.monotonic(), time.process_time()
        self._server_cpu = fork_server.cpu_seconds()
        self._busy, self._stolen = _busy_and_stolen_seconds()
        self._throttled = cgroups.throttled_seconds()

    def conditions(self, workers_cpu_seconds: float) -> Conditions:
        """Return what was seen; `workers_cpu_seconds` is the CPU time that the ended workers reported."""
        wall = max(time.monotonic() - self._started, 1e-3)
        busy, stolen = _busy_and_stolen_seconds()
        # The system counts more than workers report: their start and end take time, too.
        workers = max(workers_cpu_seconds, fork_server.cpu_seconds() - self._server_cpu)
        ours = time.process_time() - self._main_cpu + workers
        return Conditions(
            other_cores=max(0.0, busy - self._busy - ours) / wall,
            stolen_cores=max(0.0, stolen - self._stolen) / wall,
            throttled_seconds=max(0.0, cgroups.throttled_seconds() - self._throttled),
        )


def _busy_and_stolen_seconds() -> tuple[float, float]:
    """Return the seconds of all cores in which any program ran, and in which the host took them away."""
    times = psutil.cpu_times()
    busy = sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq"))
    return busy, getattr(times, "steal", 0.0)
