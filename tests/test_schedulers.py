"""Measurements that Slurm starts."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import slurm_cluster
from conftest import TINY, wait_until

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parent.parent / "examples"
ACTIVATED = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # as by the environment's bin/activate


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if why := slurm_cluster.missing():
        pytest.skip(why)
    with slurm_cluster.running(tmp_path_factory.mktemp("slurm") / "log") as cluster:
        yield cluster


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
    assert len(result["blocks"][0]["arms"]["candidate"]["processes"]) == 2
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
