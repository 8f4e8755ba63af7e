"""Each reason not to trust a measurement is told, with what to do; a quiet measurement has none."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from conftest import composed
from results_helpers import MACHINE, QUIET, TIMES, result, training

from dpexp.analysis.warnings import warnings

CALM = ["workers=2", "batch.scope=global", "batch.size=128", "data.size=5000"]
SECONDS, BASELINE = [1.0, 1.0, 1.01, 0.99, 1.0, 1.0], [1.8, 1.8, 1.82, 1.78, 1.8, 1.8]


def seen(*overrides, seconds=SECONDS, baseline=BASELINE, machine=MACHINE, change=lambda block: block):
    measured = result(*CALM, *overrides, seconds=seconds, baseline=baseline)
    return warnings(measured.config, machine, [change(block) for block in measured.kept()])


def texts(*overrides, **changes):
    return [str(warning) for warning in seen(*overrides, **changes)]


def test_a_quiet_measurement_has_none():
    assert seen() == []


def busy(**conditions):
    return lambda block: replace(block, conditions=replace(QUIET, **conditions))


FOUND = {
    "other programs": (
        {"change": busy(other_cores=0.5)},
        "other programs used up to 0.5 of 2 cores: stop them while measuring",
    ),
    "stolen time": ({"change": busy(stolen_cores=0.3)}, "the host took up to 0.3 cores away"),
    "throttled": (
        {"change": busy(throttled_seconds=0.2)},
        "the cgroup's CPU quota held processes back for 1.0 s: use fewer workers, or raise the quota",
    ),
    "quota": (
        {"machine": replace(MACHINE, cgroup_cpu_quota=1.5)},
        "the cgroup allows 1.5 CPUs for 2 threads: use fewer workers, or raise the quota",
    ),
    "one block": (
        {"seconds": SECONDS[:2], "baseline": BASELINE[:2]},
        "one block gives no interval: increase measurement.repeats",
    ),
    "superlinear": (
        {"baseline": [2 * s for s in BASELINE]},
        "the efficiency is above 100 %: no check found a cause; do not trust this result",
    ),
}


@pytest.mark.parametrize("kind", FOUND)
def test_what_was_seen_is_told_with_what_to_do(kind):
    changes, text = FOUND[kind]
    (warning,) = [warning for warning in seen(**changes) if warning.kind == kind]
    assert text in str(warning)
    assert warning.severity >= 1


def test_too_many_threads_and_fewer_updates_are_told():
    lines = texts("workers=4", "batch.scope=per_worker")
    assert any(line.startswith("4 threads on 2 cores") for line in lines)
    assert any(line.startswith("fewer updates than the baseline (20 against 80)") for line in lines)


def test_the_most_severe_comes_first():
    found = seen("workers=4", "batch.scope=per_worker", change=busy(other_cores=1.5))
    assert [warning.kind for warning in found] == ["other programs", "fewer updates", "oversubscribed"]
    assert [warning.severity for warning in found] == pytest.approx([15, 4, 2])


def test_a_tighter_quota_is_more_severe():
    (loose,), (tight,) = (seen(machine=replace(MACHINE, cgroup_cpu_quota=quota)) for quota in (1.5, 0.5))
    assert tight.severity > loose.severity


def test_ranks_on_other_machines_do_not_oversubscribe_this_one():
    assert seen("workers=4", "strategy=ddp", machine=replace(MACHINE, local_world_size=2)) == []


def causes(*overrides, **changes):
    (warning,) = [warning for warning in seen(*overrides, **changes) if warning.kind == "superlinear"]
    return warning.advice


def test_fewer_updates_are_a_cause_of_more_than_full_efficiency():
    assert "fewer updates (40 against 80)" in causes("batch.scope=per_worker", baseline=[2 * s for s in BASELINE])


def test_a_thread_mismatch_is_a_cause_of_more_than_full_efficiency():
    def two_threads(block):
        return replace(block, baseline=replace(training(4.0), workers=[replace(TIMES, threads=2)]))

    assert "a thread mismatch ({2} against {1})" in causes(change=two_threads)


def test_a_precision_that_was_not_reached_is_told():
    noisy = [1.0, 1.0, 1.05, 0.95, 1.08, 0.93]
    (warning,) = [
        warning for warning in seen("measurement.precision=0.01", seconds=noisy) if warning.kind == "precision"
    ]
    assert re.match(r"the speedup is known to \d+\.\d % only", warning.text)
    assert "increase measurement.max_seconds (now 9)" in warning.advice


def test_slow_spells_that_moved_the_overall_speedup_are_told():
    def slow_half_way(block):
        return replace(block, candidate=replace(block.candidate, turn_seconds=[0.1] * 8 + [0.3] * 2))

    (warning,) = [warning for warning in seen(change=slow_half_way) if warning.kind == "disturbed"]
    assert warning.text == "slow spells hit 20 % of the workers' turns"
    assert warning.advice.startswith("they don't count; with all time counted the speedup is 1.29")


def test_in_a_container_the_hosts_other_programs_are_not_counted():
    assert seen(change=busy(other_cores=40.0), machine=replace(MACHINE, logical_cores=64)) == []


def test_slow_spells_are_told_of_the_side_that_they_hit_more():
    quiet = [1.0, 1.01, 0.99, 1.0, 1.0, 1.0, 1.01, 0.99]
    hit = [*quiet[:6], 1.5, 1.6]
    blocks = result("workers=2", seconds=[9, 1, 1, 1], baseline=[9, 2, 2, 2]).kept()
    slowed = [
        replace(
            block,
            baseline=replace(block.baseline, turn_seconds=[2 * seconds for seconds in hit]),
            candidate=replace(block.candidate, turn_seconds=quiet),
        )
        for block in blocks
    ]
    texts = [str(warning) for warning in warnings(composed("workers=2"), MACHINE, slowed)]
    assert any("slow spells hit 25 % of the baseline's turns" in text for text in texts)
