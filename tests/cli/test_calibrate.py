"""The checks of the calibration pass on correct measurements and fail on wrong ones."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from basics import tiny

from dpexp.analysis.estimate import Estimate
from dpexp.calibrate import __main__ as checks
from dpexp.calibrate.faults import Fault
from dpexp.launchers.local import LocalLauncher
from dpexp.processes.turn import Turn
from dpexp.train.data.dataset import load
from dpexp.train.models.initial_state import initial_state
from dpexp.train.worker import TrainingSpec

DELAY, SLOWDOWN = checks.DELAY_SECONDS, checks.SLOWDOWN


def step(*workers):
    """A step of two workers with the given (compute, wait, communicate) milliseconds."""
    names = ("compute", "wait", "communicate")
    phases = [{name: value / 1e3 for name, value in zip(names, each, strict=True)} for each in workers]
    seconds = max(sum(each) for each in workers) / 1e3
    return SimpleNamespace(step_seconds=seconds, phases=[{"data": 0.0, **each, "update": 0.0} for each in phases])


PLAIN = step((2.0, 0.1, 0.2), (2.1, 0.0, 0.2))


@pytest.mark.parametrize(("value", "passed"), [(1.0, True), (1.05, False)])
def test_the_same_twice_must_read_one(value, passed):
    assert checks.check_ratio("A/A", Estimate(value, value - 0.02, value + 0.02), 1.0).passed is passed


@pytest.mark.parametrize(("value", "passed"), [(1.0, True), (1.015, True), (1.06, False)])
def test_steps_must_tell_the_time_of_whole_trainings(value, passed):
    assert checks.check_segments("2 workers", Estimate(value, value - 0.002, value + 0.002)).passed is passed


@pytest.mark.parametrize(("value", "passed"), [(1.02, True), (1.005, False), (1.1, False)])
def test_two_percent_must_be_found_and_be_two_percent(value, passed):
    assert checks.check_ratio("slower", Estimate(value, value - 0.01, value + 0.01), SLOWDOWN).passed is passed


def check_working(delayed):
    return checks.check_delay("computation on rank 1", PLAIN, delayed, waiting=0.5, communicating=0.0)


def test_a_delay_on_one_rank_must_be_load_balance():
    assert check_working(step((2.0, 5.1, 0.2), (7.1, 0.0, 0.2))).passed
    blamed_on_communication = step((2.0, 0.1, 5.2), (7.1, 0.0, 0.2))
    assert not check_working(blamed_on_communication).passed


def check_late(delayed):
    return checks.check_delay("communication", PLAIN, delayed, waiting=0.0, communicating=1.0)


def test_a_delay_in_communication_must_be_communication():
    assert check_late(step((2.0, 0.1, 5.2), (2.1, 0.0, 5.2))).passed
    blamed_on_balance = step((2.0, 5.1, 0.2), (2.1, 5.0, 0.2))
    assert not check_late(blamed_on_balance).passed


def test_faults_reach_the_workers_they_are_for_and_change_no_result():
    config = tiny("workers=2")
    dataset = load(config)
    spec = TrainingSpec(config, dataset, initial_state(config, dataset), in_turns=True)
    fault = Fault(compute_seconds=DELAY, communicate_seconds=DELAY, slowdown=1.01)
    with LocalLauncher({"late": fault}).segments({"late": spec, "plain": spec}) as programs:
        for name in ("late", "plain"):
            assert len(programs.run_turn(name, Turn(1, 5))) == 5
        reports = programs.end()
    late, plain = reports["late"], reports["plain"]
    assert min(late[1].phases["compute"]) >= DELAY > min(late[0].phases["compute"])
    assert all(min(report.phases["communicate"]) >= 0.99 * DELAY for report in late)
    assert [report.parameters_sha256 for report in late] == [report.parameters_sha256 for report in plain]
