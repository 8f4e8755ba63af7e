"""Each reason not to believe a measurement is told, with what to do; a quiet measurement has none."""

from __future__ import annotations

from dataclasses import replace

import pytest
from results_helpers import MACHINE, QUIET, TIMES, result, training

from dpexp.doubts import doubts

CALM = ["workers=2", "batch.scope=global", "batch.size=128", "data.size=5000"]
SECONDS, BASELINE = [1.0, 1.0, 1.01, 0.99, 1.0, 1.0], [1.8, 1.8, 1.81, 1.79, 1.8, 1.8]


def told(*overrides, seconds=SECONDS, baseline=BASELINE, machine=MACHINE, change=lambda block: block):
    one = result(*CALM, *overrides, seconds=seconds, baseline=baseline)
    return doubts(one.config, machine, [change(block) for block in one.kept()])


def test_a_quiet_measurement_raises_none():
    assert told() == []


def busy(**conditions):
    return lambda block: replace(block, conditions=replace(QUIET, **conditions))


def drifting():
    speeds = iter([0.01, 0.01, 0.012, 0.01, 0.01])
    return lambda block: replace(block, conditions=replace(QUIET, arithmetic_seconds=next(speeds)))


FOUND = {
    "drift": ({"change": drifting()}, "the machine's speed (arithmetic) drifted by 20 %"),
    "other load": ({"change": busy(other_cores=0.5)}, "other programs used up to 0.5 of 2 cores: end them"),
    "steal": ({"change": busy(stolen_cores=0.3)}, "the host took up to 0.3 cores"),
    "throttling": ({"change": busy(throttled_seconds=0.2)}, "the cgroup's CPU quota held processes back for 1.0 s"),
    "quota": (
        {"machine": replace(MACHINE, cgroup_cpu_quota=1.5)},
        "the cgroup allows 1.5 CPUs for 2 threads",
    ),
    "spread": ({"seconds": [1.0, 1.0, 1.4, 0.7, 1.2, 1.0]}, "the blocks' speedups spread by"),
    "short": (
        {"seconds": [s / 10 for s in SECONDS], "baseline": [s / 10 for s in BASELINE]},
        "timed for only 0.099 s: raise data.size or epochs",
    ),
    "one block": ({"seconds": SECONDS[:2], "baseline": BASELINE[:2]}, "one block: no interval"),
    "nothing to blame": (
        {"baseline": [2 * s for s in BASELINE]},
        "efficiency over 100 %: the checks blame nothing, so doubt the measurement",
    ),
    "cold baseline": (
        {"baseline": [5.0, 5.0, 3.6, 3.6, 3.6, 3.6]},
        "a cold baseline (its first block took 1.39 times as long as the others)",
    ),
    "cold start": (
        {"baseline": [4.5, 4.5, 1.8, 1.8, 1.8, 1.8]},
        "a cold baseline, 2.5 times as slow in its first block as in the others: raise measurement.warmup",
    ),
}


@pytest.mark.parametrize(("changes", "text"), FOUND.values(), ids=FOUND.keys())
def test_what_is_wrong_is_told_with_what_to_do(changes, text):
    assert any(text in line for line in told(**changes)), told(**changes)


def test_too_many_threads_and_fewer_updates_are_told():
    lines = told("workers=4", "batch.scope=per_worker")
    assert lines[0] == "oversubscribed: 4 threads on 2 cores"
    assert lines[1].startswith("fewer updates than the baseline: 20 against 80")


def test_ranks_on_other_machines_do_not_oversubscribe_this_one():
    assert told("workers=4", "strategy=ddp", machine=replace(MACHINE, local_world_size=2)) == []


def test_fewer_updates_are_blamed_for_more_than_a_full_efficiency():
    lines = told("batch.scope=per_worker", baseline=[2 * s for s in BASELINE])
    assert "fewer updates (40 against 80)" in lines[-1]


def test_a_thread_mismatch_is_blamed():
    def two_threads(block):
        return replace(block, baseline=replace(training(4.0), workers=[replace(TIMES, threads=2)]))

    assert "a thread mismatch ({2} against {1})" in told(change=two_threads)[-1]


def test_a_precision_that_was_not_reached_is_told():
    noisy = [1.0, 1.0, 1.05, 0.95, 1.08, 0.93]
    (line,) = [line for line in told("measurement.precision=0.01", seconds=noisy) if "precision" in line]
    assert line.startswith("precision 1 % needs ")
    assert "5 were made in measurement.max_seconds=600: raise it" in line


def test_in_a_container_the_hosts_other_programs_are_not_blamed():
    assert told(change=busy(other_cores=40.0), machine=replace(MACHINE, logical_cores=64)) == []
