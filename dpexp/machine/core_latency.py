"""How long data take from core to core: it changes where the host of a virtual machine moves its cores.

Cores that share a cache exchange data about three times as fast as cores that don't. A guest's view of its cores never
changes, but their host may move them every few seconds, or leave them apart for minutes. So a measurement records how
long a cache line took, and the least that any measurement on this machine has found.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from dpexp.files import user_cache, write_atomically
from dpexp.machine import core_probe

FILE_NAME = "core_latency.json"
TIMEOUT_SECONDS = 5.0
SEEN_AGAIN = 1.2  # times the least counts as the least seen again
KEPT_SECONDS = 86_400.0  # after which a least that wasn't seen again is forgotten: the machine has changed


@dataclass(frozen=True, slots=True)
class CoreLatency:
    """Of a cache line, from one core to another and back: the mean over pairs of cores of their shortest times."""

    seconds: float
    least_seconds: float  # that any measurement on this machine found


def measured() -> CoreLatency | None:
    """The core latency now; None on one core, and where processes can't choose theirs."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    command = [sys.executable, "-I", "-S", core_probe.__file__]
    try:
        answer = subprocess.run(command, capture_output=True, timeout=TIMEOUT_SECONDS, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    if not answer:
        return None
    seconds = float(answer)
    try:
        return CoreLatency(seconds, _least(seconds, user_cache() / FILE_NAME, time.time()))
    except RuntimeError:  # the user has no home
        return CoreLatency(seconds, seconds)


def _least(seconds: float, path: Path, now: float) -> float:
    """The least that this machine has shown since it was started, which the file at `path` keeps from now on."""
    boot, least, seen = _boot(), math.inf, -math.inf
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # no file yet, or a damaged one
        kept = json.loads(path.read_text())
        if kept["boot"] == boot and now < kept["seen"] + KEPT_SECONDS:
            least, seen = float(kept["seconds"]), float(kept["seen"])
    if seconds < least or (seconds <= SEEN_AGAIN * least and now > seen + KEPT_SECONDS / 24):
        least = min(least, seconds)
        with contextlib.suppress(OSError):  # without the file, this measurement knows its blocks only
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps({"boot": boot, "seconds": least, "seen": now}))
    return least


def _boot() -> str:
    """What names the time since the machine was started, and the cores that this process may use."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{boot.read_text().strip() if boot.exists() else os.uname().nodename} {sorted(os.sched_getaffinity(0))}"
