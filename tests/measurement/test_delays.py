"""Whom the others wait for, in real trainings."""

from __future__ import annotations

import programs
import pytest
from basics import SCRIPTS

from dpexp.analysis.slow_worker import find_slow_worker
from dpexp.config.job import CANDIDATE
from dpexp.measurement import job
from dpexp.measurement.trainer import ArmSteps
from dpexp.processes.turn import Turn
from testbed.delays import PHASES, Case, prepared

FORK = SCRIPTS / "fork.py"
LONG = 0.03  # seconds: what else goes on here is shorter


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        Case("script", 2, "backward", 1, LONG),
        Case("script", 2, "update", 0, LONG),
        Case("sync_dp", 2, "data", 0, LONG),
        Case("ddp", 2, "forward", 1, LONG),
    ],
    ids=lambda case: f"{case.kind}, {case.place}",
)
def test_a_delay_in_a_real_training_is_named(tmp_path, case, monkeypatch):
    programs.server()
    monkeypatch.setattr("subprocess.Popen", programs.Program)
    monkeypatch.setattr("testbed.delays.SCRIPT", f"python {FORK} {{workers}} {{port}} testbed/delayed_script.py")
    config, launcher = prepared(case)
    with job.open_trainer(config, tmp_path, launcher).running({CANDIDATE: config}) as arms:
        timed = ArmSteps([arms.run_turn(CANDIDATE, Turn(3, 2))], [3])
        for _ in range(4):
            arms.run_turn(CANDIDATE, Turn(2, 10, traced=True))
        arm = arms.end({CANDIDATE: timed})[CANDIDATE]
    found = find_slow_worker([arm], [])
    assert (found["slow_rank"], found["slow_phase"]) == (case.rank, PHASES[case.place])
    assert found["slow_seconds"] > 0.9 * LONG  # more where others use the cores
