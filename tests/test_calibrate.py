"""The checks of the calibration pass on correct measurements and fail on wrong ones."""

from __future__ import annotations

import pytest
from conftest import tiny
from results_helpers import training, with_phases

from dpexp.analysis.intervals import Estimate
from dpexp.calibrate import checks
from dpexp.calibrate.faults import Fault, FaultyLauncher
from dpexp.data.dataset import load
from dpexp.models.initial_state import initial_state
from dpexp.training.worker import Work

UPDATES = 100
DELAY = checks.DELAY_SECONDS


def recorded(*workers):
    """A training of two workers with the given (compute, wait, communicate) milliseconds a step."""
    seconds = max(sum(phases) for phases in workers) * UPDATES / 1e3
    names = ("compute", "wait", "communicate")
    totals = [{name: value * UPDATES / 1e3 for name, value in zip(names, each, strict=True)} for each in workers]
    return [with_phases(training(seconds), *[{"data": 0.0, **phases, "update": 0.0} for phases in totals])]


PLAIN = recorded((2.0, 0.1, 0.2), (2.1, 0.0, 0.2))


@pytest.mark.parametrize(("value", "passed"), [(1.0, True), (1.05, False)])
def test_the_same_twice_must_read_one(value, passed):
    assert checks._check_same(Estimate(value, value - 0.02, value + 0.02)).passed is passed


@pytest.mark.parametrize(("value", "passed"), [(1.0, True), (1.015, True), (1.06, False)])
def test_turns_must_take_as_long_as_one_piece(value, passed):
    assert checks._check_turns(Estimate(value, value - 0.002, value + 0.002), 1e-3).passed is passed


@pytest.mark.parametrize(("value", "passed"), [(1.02, True), (1.005, False), (1.1, False)])
def test_two_percent_must_be_found_and_be_two_percent(value, passed):
    assert checks._check_slower(Estimate(value, value - 0.01, value + 0.01)).passed is passed


@pytest.mark.parametrize(("value", "share", "passed"), [(1.005, 0.001, True), (1.08, 0.001, False), (1.0, 0.03, False)])
def test_the_instruments_own_cost_must_be_small(value, share, passed):
    assert checks._check_cost(Estimate(value, value - 0.02, value + 0.02), share).passed is passed


def test_a_delay_on_one_rank_must_be_load_balance():
    delayed = recorded((2.0, 5.1, 0.2), (7.1, 0.0, 0.2))
    assert checks._check_imbalance(PLAIN, delayed, UPDATES).passed
    blamed_on_communication = recorded((2.0, 0.1, 5.2), (7.1, 0.0, 0.2))
    assert not checks._check_imbalance(PLAIN, blamed_on_communication, UPDATES).passed


def test_a_delay_in_communication_must_be_communication():
    delayed = recorded((2.0, 0.1, 5.2), (2.1, 0.0, 5.2))
    assert checks._check_communication(PLAIN, delayed, UPDATES).passed
    blamed_on_balance = recorded((2.0, 5.1, 0.2), (2.1, 5.0, 0.2))
    assert not checks._check_communication(PLAIN, blamed_on_balance, UPDATES).passed


def test_faults_reach_the_workers_they_are_for_and_change_no_result():
    config = tiny("workers=2")
    dataset = load(config)
    work = Work(config, dataset, initial_state(config, dataset), "torch", False, None)
    fault = Fault(compute_seconds=DELAY, compute_rank=1, communicate_seconds=DELAY, slowdown=1.01)
    reports = FaultyLauncher({"late": fault}).run_in_turns({"late": work, "plain": work}, lambda done: None)
    late, plain = reports["late"], reports["plain"]
    assert late[1].phases["compute"]["median"] >= DELAY > late[0].phases["compute"]["median"]
    assert all(report.phases["communicate"]["median"] >= DELAY for report in late)
    assert [report.parameters_sha256 for report in late] == [report.parameters_sha256 for report in plain]
