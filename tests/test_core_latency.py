"""How far apart the cores are: measured, remembered, and what a result says of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from conftest import TINY, composed
from results_helpers import MACHINE, at_latencies, result

from dpexp.analysis.speedup import far_latency, paired_speedup, pairs_with_baseline
from dpexp.analysis.warnings import warnings
from dpexp.machine import core_latency, core_probe
from dpexp.machine.environment import usable_cores

NEAR, FAR = 2e-7, 6e-7
SECONDS = [1.0, 1.0, 1.01, 0.99, 1.0]
CANDIDATE = [0.5 * seconds for seconds in SECONDS]

several_cores = pytest.mark.skipif(usable_cores() < 2, reason="needs two cores")


def measured(*latencies):
    return at_latencies(result("workers=2", seconds=CANDIDATE, baseline=[0.9 * one for one in SECONDS]), *latencies)


def speedup_of(found):
    return paired_speedup(found.config, pairs_with_baseline(found.kept()))


def kinds_of(found):
    return {warning.kind: warning for warning in warnings(found.config, MACHINE, found.kept())}


@several_cores
def test_a_cache_line_takes_less_than_a_switch_between_processes():
    assert 1e-9 < core_latency.measured().seconds < 1e-5


@several_cores
def test_a_core_that_never_answers_is_no_number(monkeypatch):
    monkeypatch.setattr(core_probe, "_answer", lambda memory: None)
    monkeypatch.setattr(core_probe, "PATIENCE", 100)
    first, second, *_ = sorted(os.sched_getaffinity(0))
    cores = os.sched_getaffinity(0)
    try:
        assert core_probe.round_trip_seconds(first, second) is None
    finally:
        os.sched_setaffinity(0, cores)


@several_cores
def test_an_answer_that_is_missed_makes_no_later_one_seem_quick(monkeypatch):
    """Every third value is never answered; the value before it must not stand for the one after it."""

    def answer_some(memory):
        value, count = 0, 0
        while value != core_probe.END:
            if memory[core_probe.PING] != value:
                value, count = memory[core_probe.PING], count + 1
                if count % 3:
                    memory[core_probe.PONG] = value

    monkeypatch.setattr(core_probe, "_answer", answer_some)
    monkeypatch.setattr(core_probe, "PATIENCE", 20_000)
    monkeypatch.setattr(core_probe, "MOST_MISSED", 1000)
    first, second, *_ = cores = sorted(os.sched_getaffinity(0))
    try:
        found = core_probe.round_trip_seconds(first, second)
    finally:
        os.sched_setaffinity(0, cores)
    assert found > 0.5 * core_latency.measured().seconds


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system lets no process choose its core")
def test_one_core_has_no_latency():
    pin = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])"
    probe = f"{pin}; import runpy; runpy.run_path({core_probe.__file__!r}, run_name='__main__')"
    assert subprocess.run([sys.executable, "-c", probe], capture_output=True, check=True).stdout == b""


def test_the_least_is_remembered_from_measurement_to_measurement(tmp_path):
    path = tmp_path / "new" / "latency.json"
    found = [core_latency._least(seconds, path, now) for now, seconds in enumerate([FAR, NEAR, FAR, 1.1 * NEAR])]
    assert found == [FAR, NEAR, NEAR, NEAR]


def test_a_least_that_was_not_seen_again_for_a_day_is_forgotten(tmp_path):
    path = tmp_path / "latency.json"
    core_latency._least(NEAR, path, 0.0)
    assert core_latency._least(1.1 * NEAR, path, 80_000.0) == NEAR  # which is seeing it again
    assert core_latency._least(FAR, path, 160_000.0) == NEAR
    assert core_latency._least(FAR, path, 170_000.0) == FAR


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"boot": "another machine", "seen": 1e99, "seconds": 1e-9}'])
def test_a_record_that_is_damaged_or_not_of_this_machine_is_replaced(tmp_path, damage):
    path = tmp_path / "latency.json"
    path.write_text(damage)
    assert core_latency._least(NEAR, path, 0.0) == NEAR
    assert json.loads(path.read_text())["seconds"] == NEAR


def test_where_nothing_can_be_remembered_the_measurement_goes_on(tmp_path):
    (tmp_path / "file").touch()
    assert core_latency._least(NEAR, tmp_path / "file" / "latency.json", 0.0) == NEAR


def test_with_cores_far_apart_the_speedup_may_be_anything_up_to_the_ideal():
    near, far = speedup_of(measured(*[NEAR] * 5)), speedup_of(measured(*[FAR] * 5))
    assert (far.value, far.low) == (near.value, near.low)
    assert near.high < far.high == 2


def test_cores_far_apart_are_a_warning_with_their_latencies():
    assert "unsettled" not in kinds_of(measured(*[NEAR] * 5))
    text = str(kinds_of(measured(*[FAR] * 5))["unsettled"])
    assert "a cache line took 600 ns from one to another and back, 200 ns at other times" in text


def test_one_block_with_near_cores_settles_it():
    found = measured(NEAR, FAR, FAR, NEAR, FAR)  # of which the first is discarded
    assert far_latency(block.candidate for block in found.kept()) is None


@pytest.mark.parametrize(("workers", "threads", "widened"), [(1, 1, False), (2, 1, True), (1, 2, True)])
def test_drift_is_in_the_interval_where_several_cores_are_compared(workers, threads, widened):
    found = result(f"workers={workers}", seconds=CANDIDATE, baseline=[0.9 * one for one in SECONDS])
    pairs = [
        (replace(first, workers=[replace(one, threads=threads) for one in first.workers]), second)
        for first, second in pairs_with_baseline(found.kept())
    ]
    with_drift = composed(f"workers={workers}", "measurement.drift=0.008")
    narrow, wide = paired_speedup(found.config, pairs), paired_speedup(with_drift, pairs)
    assert (wide.high / wide.low > narrow.high / narrow.low) is widened


def test_without_exchange_between_cores_nothing_is_far():
    found = result("workers=1", seconds=[1.0, 1.0], baseline=None)
    assert far_latency(block.candidate for block in found.blocks) is None


@several_cores
@pytest.mark.slow
def test_a_command_says_that_cores_exchange_more_slowly_than_before(dpexp, tmp_path, monkeypatch):
    """Before, in this case, was never: the record claims a latency that no core has."""
    (tmp_path / "dpexp").mkdir()
    record = {"boot": core_latency._boot(), "seconds": 1e-9, "seen": time.time()}
    (tmp_path / "dpexp" / core_latency.FILE_NAME).write_text(json.dumps(record))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    outcome = dpexp(*TINY, "workers=2", "measurement.repeats=2")
    assert "ns from one to another and back, 1 ns at other times" in " ".join((outcome.out + outcome.err).split())
