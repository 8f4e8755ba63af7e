"""Jobs that somebody else starts: Hydra's launcher plugins, and Slurm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
from conftest import TINY, free_port
from deeds import Place
from fault_helpers import faulty_model

from dpexp.phases import COMPUTE
from dpexp.processes.heartbeat import TRAINING

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parent.parent / "examples"
LAUNCHERS = {
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit": ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5"],
}


def run(folder: Path, command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"DPEXP_LOCK": str(folder), **variables}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=180)


@pytest.mark.parametrize("launcher", LAUNCHERS.values(), ids=LAUNCHERS)
def test_jobs_of_another_launcher_take_turns_on_a_machine_and_are_reported_together(tmp_path, launcher):
    command = [sys.executable, "-m", "dpexp", "-m", *launcher, *TINY, "epochs=400"]  # some seconds
    done = run(tmp_path, [*command, "workers=1,2", "hydra.sweep.dir=out"])
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "results.csv").read_text().count("\nok,") == 2
    times = []
    for path in (tmp_path / "out").glob("*/result.json"):
        began = datetime.fromisoformat(json.loads(path.read_text())["started_at"]).timestamp()
        times.append((began, path.stat().st_mtime))
    (_, first_ended), (second_began, _) = sorted(times)
    assert first_ended <= second_began + 1  # which is in whole seconds


def test_a_job_that_fails_elsewhere_fails_the_command(tmp_path):
    """Elsewhere may be the same process: joblib starts none for one job at a time."""
    model = faulty_model(tmp_path, "kill", Place(TRAINING, COMPUTE, 2), victim=2)  # of which only one job has one
    settings = [override for override in TINY if not override.startswith("model.")]
    command = [
        sys.executable,
        "-m",
        "dpexp",
        "-m",
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=1",
        *settings,
        *model,
        "workers=2,3",
    ]
    done = run(tmp_path, command, PYTHONPATH=str(Path(__file__).parent))
    assert done.returncode == 1
    assert "rank 2 was killed by SIGKILL" in done.stderr
    assert "1 of 2 jobs failed" in done.stderr
    assert "Traceback" not in done.stderr


STAND_INS = {
    "scontrol": "echo 127.0.0.1; echo 127.0.0.1",
    "srun": """[ "$1 $2" = "--cpus-per-task=2 --kill-on-bad-exit=1" ] || exit 9
shift 2
SLURM_NODEID=1 "$@" &
SLURM_NODEID=0 "$@"
status=$?
wait $! || status=1
exit $status""",
}


def test_the_sbatch_file_measures_over_two_nodes(tmp_path):
    (tmp_path / "bin").mkdir()
    for name, code in STAND_INS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{code}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    path = f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    variables = {
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_NNODES": "2",
        "SLURM_CPUS_PER_TASK": "2",
        "MASTER_PORT": str(free_port()),
    }
    command = ["bash", str(EXAMPLES / "slurm.sbatch"), *TINY, "strategy=hybrid_dp", "hydra.run.dir=out"]
    done = run(tmp_path, command, PATH=path, **variables)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert [worker["rank"] for worker in result["blocks"][0]["candidate"]["workers"]] == [0, 1, 2, 3]
