"""What is seen of the machine while a block runs."""

from __future__ import annotations

import subprocess
import sys

from deeds import use_cpu

from dpexp.measurement.conditions import Watch
from dpexp.processes import fork_server, launch
from dpexp.processes.world import WorldSpec

TICK_SECONDS = 0.02  # the system counts in hundredths, rounded


def test_a_program_of_somebody_else_is_seen_and_ones_own_work_is_not():
    busy = [sys.executable, "-c", "import time; t = time.monotonic()\nwhile time.monotonic() < t + 1: pass"]
    launch.wait_for_server()
    watch = Watch()
    subprocess.run(busy, check=True)
    seen = watch.conditions(workers_cpu_seconds=0.0)
    watch = Watch()
    subprocess.run(busy, check=True)
    own = watch.conditions(workers_cpu_seconds=1.0)
    assert seen.other_cores > own.other_cores + 0.3


def test_what_a_worker_used_is_known_when_it_has_ended():
    before = fork_server.cpu_seconds()
    launch.launch(WorldSpec(use_cpu, [(0.2,)]))
    assert fork_server.cpu_seconds() >= before + 0.2 - TICK_SECONDS
