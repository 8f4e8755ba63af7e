"""What all processor cores have done so far."""

from __future__ import annotations

import psutil


def busy_seconds() -> float:
    """Seconds, over all cores, in which any program ran."""
    times = psutil.cpu_times()
    return sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq"))


def stolen_seconds() -> float:
    """Seconds, over all cores, in which a virtual machine's host ran something else."""
    return getattr(psutil.cpu_times(), "steal", 0.0)
