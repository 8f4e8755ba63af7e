"""Where the time of a step went: nothing is lost, and nothing is kept that grows with the training."""

from __future__ import annotations

import pytest
from conftest import tiny

from dpexp.data.dataset import load
from dpexp.launchers.local import LocalLauncher
from dpexp.models.initial_state import initial_state
from dpexp.phases import COMPUTE, DATA, PHASES, UPDATE
from dpexp.clock.recorder import NoRecorder, Recorder
from dpexp.training.worker import Work


def reports(*overrides):
    config = tiny(*overrides)
    dataset = load(config)
    initial = initial_state(config, dataset)
    return config, LocalLauncher().run(Work(config, dataset, initial, "torch", False, None))


@pytest.mark.parametrize("strategy", ["sequential", "sync_dp", "emulated", "ddp"])
def test_the_phases_of_all_steps_make_up_the_timed_region(strategy):
    workers = 1 if strategy == "sequential" else 2
    _, own = reports(f"strategy={strategy}", f"workers={workers}", "epochs=20")
    for report in own:
        phases = sum(report.phases[name]["seconds"] for name in PHASES if name in report.phases)
        assert phases == pytest.approx(report.phases["step"]["seconds"], rel=1e-4)
        assert 0.8 * sum(report.turn_seconds) < phases <= sum(report.turn_seconds)


def test_one_process_neither_waits_nor_communicates():
    _, (own,) = reports("strategy=sequential", "workers=1")
    assert own.phases["wait"]["seconds"] == own.phases["communicate"]["seconds"] == 0
    assert own.phases["update"]["seconds"] > 0


def test_ddp_does_not_claim_to_tell_waiting_from_communicating():
    _, own = reports("strategy=ddp", "workers=2")
    assert "wait" not in own[0].phases
    assert own[0].phases["communicate"]["seconds"] > 0


def test_without_instruments_nothing_is_recorded():
    _, own = reports("measurement.phases=false", "workers=2")
    assert [report.phases for report in own] == [{}, {}]


def test_a_summary_has_the_same_size_whatever_the_number_of_steps():
    sizes = set()
    for steps in (1, 1000):
        recorder = Recorder()
        recorder.start()
        for _ in range(steps):
            recorder.enter(DATA)
            recorder.enter(COMPUTE)
            recorder.end_step()
        summary = recorder.summary(steps)
        sizes.add((len(summary), len(summary["compute"])))
    assert len(sizes) == 1


def test_time_can_be_moved_from_one_phase_to_another():
    recorder = Recorder()
    recorder.start()
    recorder.enter(COMPUTE)
    started = recorder._last
    recorder.enter(DATA)
    recorder.move_since(started, COMPUTE, UPDATE)
    recorder.end_step()
    summary = recorder.summary(1)
    assert summary["compute"]["seconds"] == 0
    assert summary["update"]["seconds"] > 0


def test_percentiles_are_in_order():
    _, own = reports("workers=2", "epochs=5")
    for distribution in own[0].phases.values():
        assert distribution["median"] <= distribution["p95"] <= distribution["p99"] <= distribution["seconds"]


def test_the_recorder_that_records_nothing_has_nothing():
    recorder = NoRecorder()
    recorder.start()
    recorder.enter(DATA)
    recorder.end_step()
    assert recorder.summary(1) == {}
