"""Jobs that somebody else starts: Hydra's launcher plugins, and Slurm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import programs
import pytest
import slurm_cluster
from conftest import TINY, wait_until
from deeds import Place
from fault_helpers import faulty_model

from dpexp.processes.heartbeat import TRAINING
from dpexp.results.phases import COMPUTE

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parent.parent / "examples"
ACTIVATED = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # as by the environment's bin/activate


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    if why := slurm_cluster.missing():
        pytest.skip(why)
    with slurm_cluster.running(tmp_path_factory.mktemp("slurm") / "log") as cluster:
        yield cluster


@pytest.fixture
def joblib() -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")


def run(folder: Path, command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    return programs.run(command, cwd=folder, env=os.environ | {"DPEXP_LOCK": str(folder), **variables})


def sweep(*launcher: str) -> list[str]:
    """Two jobs that train for a second."""
    words = ["python", "-m", "dpexp", "-m", *launcher, *TINY]
    return [*words, "epochs=400", "workers=1,2", "hydra.sweep.dir=out"]


def assert_turns(done: subprocess.CompletedProcess[str], folder: Path) -> None:
    """Both jobs of the sweep were measured, one after the other, and reported together."""
    assert done.returncode == 0, done.stderr
    assert (folder / "out" / "results.csv").read_text().count("\nok,") == 2
    times = []
    for path in (folder / "out").glob("*/result.json"):
        began = datetime.fromisoformat(json.loads(path.read_text())["started_at"]).timestamp()
        times.append((began, path.stat().st_mtime))
    (_, first_ended), (second_began, _) = sorted(times)
    assert first_ended <= second_began + 1  # which is in whole seconds


def test_jobs_of_joblib_take_turns_on_a_machine_and_are_reported_together(tmp_path, joblib):
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    assert_turns(run(tmp_path, sweep(*launcher), PATH=ACTIVATED), tmp_path)


def test_a_sweep_of_joblib_is_finished_by_this_process(tmp_path, joblib):
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=1"]
    assert run(tmp_path, sweep(*launcher), PATH=ACTIVATED).returncode == 0
    (tmp_path / "out" / "1" / "result.json").unlink()
    done = run(tmp_path, [*sweep(*launcher), "resume=out"], PATH=ACTIVATED)
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 of 2 jobs had already been measured" in done.stdout


def test_jobs_of_slurm_take_turns_on_a_node_and_are_reported_together(cluster, tmp_path):
    launcher = ["hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1"]
    same_node = "+hydra.launcher.additional_parameters={nodelist: n1}"
    done = cluster.run(tmp_path, *sweep(*launcher, same_node), PATH=ACTIVATED, DPEXP_LOCK=str(tmp_path))
    assert_turns(done, tmp_path)


def test_a_job_that_fails_elsewhere_fails_the_command(tmp_path, joblib):
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


def submit(*overrides: str, options: Sequence[str]) -> list[str]:
    """The example, on both nodes of the cluster."""
    file = str(EXAMPLES / "slurm.sbatch")
    return ["sbatch", "--nodes=2", "--cpus-per-task=1", *options, file, "hydra.run.dir=out", *overrides]


def printed(folder: Path) -> str:
    """By the jobs that were submitted there."""
    return "".join(path.read_text() for path in folder.glob("slurm-*.out"))


SCRIPT = "env RANK={host} WORLD_SIZE={workers} MASTER_ADDR={head} MASTER_PORT={port} python"
SUBMITTED = {
    "training": [*TINY, "strategy=ddp"],
    "script": [
        *[text for text in TINY if text.startswith("measurement")],
        "measurement.baseline=none",
        *["batch.size=8", "--", *SCRIPT.split(), f"{Path(__file__).parent}/scripts/train.py", "--batch"],
        "{local_batch_size}",
    ],
}


@pytest.mark.parametrize("kind", SUBMITTED)
def test_the_sbatch_file_measures_over_two_nodes(cluster, tmp_path, kind):
    done = cluster.run(tmp_path, *submit(*SUBMITTED[kind], options=["--wait"]), PATH=ACTIVATED)
    assert done.returncode == 0, done.stderr + printed(tmp_path)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert [worker["rank"] for worker in result["blocks"][0]["arms"]["candidate"]["processes"]] == [0, 1]
    assert result["environment"]["local_world_size"] == 1


def test_a_cancelled_job_ends_all_its_processes_on_all_nodes(cluster, tmp_path):
    done = cluster.run(tmp_path, *submit(*SUBMITTED["training"], "epochs=100000", options=[]), PATH=ACTIVATED)
    assert done.returncode == 0, done.stderr
    begun = tmp_path / "out" / "result.json"  # written when the job starts
    assert wait_until(begun.exists), printed(tmp_path)
    assert cluster.commands("python")
    assert cluster.run(tmp_path, "scancel", done.stdout.split()[-1]).returncode == 0
    before_they_are_killed = 25  # by torchrun and by Slurm, both after 30 seconds
    assert wait_until(lambda: not cluster.commands("python"), before_they_are_killed), cluster.commands("python")
