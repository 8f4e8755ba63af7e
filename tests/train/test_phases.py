"""Where the time of a step went: nothing is lost, and what is reported does not grow with the number of steps."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from basics import tiny

from dpexp.launchers.local import LocalLauncher
from dpexp.phases import COMPUTE, DATA, MAX_PHASE_STEPS, PHASES, UPDATE
from dpexp.processes.turn import Turn
from dpexp.train.data.dataset import load
from dpexp.train.models.initial_state import initial_state
from dpexp.train.recorder import Recorder
from dpexp.train.worker import TrainingSpec

STEPS = 100


def segment(*overrides):
    """The reports of a job's processes that made so many steps in turns, and the seconds of each."""
    config = tiny("data.size=2400", *overrides)
    dataset = load(config)
    spec = TrainingSpec(config, dataset, initial_state(config, dataset), in_turns=True)
    with LocalLauncher().segments({"candidate": spec}) as programs:
        programs.run_turn("candidate", Turn(0, 5, warmup=True))
        seconds = [second for _ in range(4) for second in programs.run_turn("candidate", Turn(2, STEPS // 4))]
        return programs.end()["candidate"], seconds


@pytest.mark.parametrize("strategy", ["sequential", "sync_dp", "emulated", "ddp"])
def test_the_phases_of_all_steps_make_up_the_timed_steps(strategy):
    workers = 1 if strategy == "sequential" else 2
    own, seconds = segment(f"strategy={strategy}", f"workers={workers}")
    for rank, report in enumerate(own):
        assert {len(values) for values in report.phases.values()} == {STEPS}
        total = np.sum(list(report.phases.values()))
        assert total > 0
        if rank == 0:  # whose clock times the steps
            assert 0.8 * sum(seconds) < total <= sum(seconds)


def test_one_process_neither_waits_nor_communicates():
    (own,), _ = segment("strategy=sequential", "workers=1")
    assert not any(own.phases["wait"] + own.phases["communicate"])
    assert sum(own.phases["update"]) > 0


def test_ddp_does_not_claim_to_tell_waiting_from_communicating():
    own, _ = segment("strategy=ddp", "workers=2")
    assert "wait" not in own[0].phases
    assert sum(own[0].phases["communicate"]) > 0


@pytest.fixture
def recorded(monkeypatch):
    """A function: a recorder of so many steps; each one's data take as many seconds as its number, from 0."""

    def record(steps):
        now = itertools.accumulate(itertools.chain([0.0], *((number, 0.0) for number in range(steps))))
        monkeypatch.setattr("dpexp.train.recorder.time.perf_counter", lambda: next(now))
        recorder = Recorder()
        recorder.start()
        for _ in range(steps):
            recorder.begin_phase(COMPUTE)
            recorder.end_step()
        return recorder

    return record


def test_of_many_steps_an_even_choice_is_reported(recorded):
    phases = recorded(1001).phases(MAX_PHASE_STEPS)
    assert set(phases) == set(PHASES)
    assert {len(values) for values in phases.values()} == {MAX_PHASE_STEPS}
    assert (phases["data"][0], phases["data"][-1]) == (0, 1000)
    assert set(np.diff(phases["data"])) == {3, 4}


def test_of_few_steps_all_are_reported(recorded):
    assert recorded(5).phases(MAX_PHASE_STEPS)["data"] == [0, 1, 2, 3, 4]
    assert recorded(0).phases(MAX_PHASE_STEPS)["data"] == []


def test_time_can_be_moved_from_one_phase_to_another():
    recorder = Recorder()
    recorder.start()
    recorder.begin_phase(COMPUTE)
    started = recorder._last
    recorder.begin_phase(DATA)
    recorder.move_since(started, COMPUTE, UPDATE)
    recorder.end_step()
    phases = recorder.phases(1)
    assert phases["compute"] == [0]
    assert phases["update"][0] > 0


def test_a_recorder_that_is_off_has_nothing():
    recorder = Recorder(is_on=False)
    recorder.start()
    recorder.begin_phase(DATA)
    recorder.end_step()
    assert not any(recorder.phases(1).values())
