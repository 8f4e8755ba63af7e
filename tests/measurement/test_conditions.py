"""What is seen of the machine while a block runs."""

from __future__ import annotations

import resource
import subprocess
import sys

from worker_actions import use_cpu

from dpexp.measurement.blocks import LoadMonitor
from dpexp.processes import fork_server, launch
from dpexp.processes.world import WorldSpec

TICK_SECONDS = 0.02  # the system counts in hundredths, rounded


def test_a_program_of_others_is_seen_and_the_own_work_is_not():
    launch.wait_for_server()
    as_ones_own, as_somebody_elses = LoadMonitor(), LoadMonitor()
    before = cpu_seconds_of_children()
    subprocess.run([sys.executable, "-c", "sum(range(40_000_000))"], check=True)
    used = cpu_seconds_of_children() - before
    own = as_ones_own.conditions(scripts_cpu_seconds=used)
    seen = as_somebody_elses.conditions(scripts_cpu_seconds=0.0)
    assert used > 10 * TICK_SECONDS
    assert seen.other_cores > own.other_cores


def cpu_seconds_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def test_what_a_worker_used_is_known_when_it_has_ended():
    before = fork_server.cpu_seconds()
    launch.launch(WorldSpec(use_cpu, [(0.2,)]))
    assert fork_server.cpu_seconds() >= before + 0.2 - TICK_SECONDS
