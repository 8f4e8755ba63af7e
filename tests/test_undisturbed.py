"""The undisturbed time, on recorded turns of a real machine: slow spells don't move it, and it keeps what is usual."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from dpexp.analysis.undisturbed import disturbed_share_by_turns, seconds_by_turns

TRACES = Path(__file__).parent / "traces"
MACHINES = {name: json.loads((TRACES / f"{name}.json").read_text()) for name in ("restless", "stressed")}


def log_ratios(trace, seconds):
    """The log speedup of each block that counts."""
    baseline, candidate = seconds(trace["baseline"]), seconds(trace["candidate"])
    return np.array([math.log(b / c) for b, c in zip(baseline, candidate, strict=True) if not math.isnan(b + c)])


def means(trainings):
    return [sum(turns) for turns in trainings]


def medians(trainings):
    return [float(np.median(turns)) * len(turns) for turns in trainings]


@pytest.mark.parametrize("other", [means, medians])
def test_beside_a_stressor_two_workers_spread_less_than_by_other_estimators(other):
    trace = MACHINES["stressed"]["sync_dp 2"]
    assert log_ratios(trace, seconds_by_turns).std() < 0.3 * log_ratios(trace, other).std()


def test_with_and_without_a_stressor_two_workers_read_alike():
    restless, stressed = (log_ratios(MACHINES[name]["sync_dp 2"], seconds_by_turns) for name in MACHINES)
    assert np.median(stressed) == pytest.approx(np.median(restless), abs=0.05)


@pytest.mark.parametrize("machine", MACHINES)
def test_the_same_training_twice_reads_one(machine):
    ratios = log_ratios(MACHINES[machine]["A/A"], seconds_by_turns)
    assert abs(ratios.mean()) < 0.015


def test_it_agrees_with_a_training_in_one_piece_beside_no_stressor():
    for name in ("A/A", "sync_dp 2"):
        trace = MACHINES["restless"][name]
        seconds = [value for value in seconds_by_turns(trace["baseline"]) if not math.isnan(value)]
        assert np.median(seconds) == pytest.approx(np.median(trace["baseline_in_one_piece"]), rel=0.03)


def test_turns_that_usually_differ_are_kept():
    """DDP's turns over gloo differ by half from each other: that is no disturbance."""
    assert disturbed_share_by_turns(MACHINES["restless"]["ddp 2"]["candidate"]) < 0.25


def test_a_training_that_was_slow_for_most_of_its_time_does_not_count():
    calm = [[1.0, 1.01, 0.99, 1.0, 1.0]] * 5
    assert math.isnan(seconds_by_turns([*calm, [1.5, 1.6, 1.4, 1.5, 1.0]])[-1])


def test_equal_turns_are_all_kept():
    assert seconds_by_turns([[0.5, 0.5], [0.5, 0.5]]) == [1.0, 1.0]


def test_trainings_with_different_numbers_of_turns_are_compared_by_their_share():
    assert seconds_by_turns([[0.5, 0.5], [0.25] * 4]) == pytest.approx([1.0, 1.0])
