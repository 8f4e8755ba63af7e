"""The verdicts of the calibration: they pass on the truth, and fail on an instrument that lies."""

from __future__ import annotations

import pytest
from conftest import tiny
from results_helpers import training, with_phases

from dpexp import calibrate, models
from dpexp.data.dataset import load
from dpexp.faults import Fault, FaultyGroup
from dpexp.stats import Estimate
from dpexp.worker import Work

UPDATES = 100
DELAY = calibrate.DELAY_SECONDS


def recorded(*workers):
    """A training of two workers with the given (compute, wait, communicate) milliseconds a step."""
    seconds = max(sum(phases) for phases in workers) * UPDATES / 1e3
    names = ("compute", "wait", "communicate")
    own = [{name: value * UPDATES / 1e3 for name, value in zip(names, one, strict=True)} for one in workers]
    return [with_phases(training(seconds), *[{"data": 0.0, **one, "update": 0.0} for one in own])]


PLAIN = recorded((2.0, 0.1, 0.2), (2.1, 0.0, 0.2))


@pytest.mark.parametrize(("value", "passed"), [(1.0, True), (1.05, False)])
def test_the_same_twice_must_read_one(value, passed):
    assert calibrate._same(Estimate(value, value - 0.02, value + 0.02)).passed is passed


@pytest.mark.parametrize(("value", "passed"), [(1.1, True), (1.01, False), (1.3, False)])
def test_ten_percent_must_be_found_and_be_ten_percent(value, passed):
    assert calibrate._slower(Estimate(value, value - 0.04, value + 0.04)).passed is passed


@pytest.mark.parametrize(("value", "share", "passed"), [(1.005, 0.001, True), (1.08, 0.001, False), (1.0, 0.03, False)])
def test_the_instruments_own_cost_must_be_small(value, share, passed):
    assert calibrate._cost(Estimate(value, value - 0.02, value + 0.02), share).passed is passed


def test_a_delay_on_one_rank_must_be_load_balance():
    told = recorded((2.0, 5.1, 0.2), (7.1, 0.0, 0.2))
    assert calibrate._imbalance(PLAIN, told, UPDATES).passed
    blamed_on_communication = recorded((2.0, 0.1, 5.2), (7.1, 0.0, 0.2))
    assert not calibrate._imbalance(PLAIN, blamed_on_communication, UPDATES).passed


def test_a_delay_in_communication_must_be_communication():
    told = recorded((2.0, 0.1, 5.2), (2.1, 0.0, 5.2))
    assert calibrate._communication(PLAIN, told, UPDATES).passed
    blamed_on_balance = recorded((2.0, 5.1, 0.2), (2.1, 5.0, 0.2))
    assert not calibrate._communication(PLAIN, blamed_on_balance, UPDATES).passed


def test_faults_reach_the_workers_they_are_for_and_change_no_result():
    config = tiny("workers=2")
    dataset = load(config)
    work = Work(config, dataset, models.initial_state(config, dataset), "torch", False, None)
    fault = Fault(compute_seconds=DELAY, compute_rank=1, communicate_seconds=DELAY, slowdown=1.01)
    group = FaultyGroup([fault], then=Fault())
    late, plain = (group.run(work, lambda epoch: None) for _ in range(2))
    assert late[1].phases["compute"]["median"] >= DELAY > late[0].phases["compute"]["median"]
    assert all(report.phases["communicate"]["median"] >= DELAY for report in late)
    assert [report.parameters_sha256 for report in late] == [report.parameters_sha256 for report in plain]
