"""Measurements that Slurm starts."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import slurm_cluster
from basics import ROOT, SCRIPTS, TINY, wait_until

pytestmark = pytest.mark.slow

EXAMPLES = ROOT / "examples"
ACTIVATED = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # as by the environment's bin/activate


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if why := slurm_cluster.missing():
        pytest.skip(why)
    with slurm_cluster.running(tmp_path_factory.mktemp("slurm") / "log") as cluster:
        yield cluster


def submit(*arguments: str) -> list[str]:
    """The example, on both nodes of the cluster."""
    return ["sbatch", "--nodes=2", "--cpus-per-task=1", str(EXAMPLES / "slurm.sbatch"), *arguments]


def printed(folder: Path) -> str:
    """By the jobs that were submitted there."""
    return "".join(path.read_text() for path in folder.glob("slurm-*.out"))


SCRIPT = "env RANK={host} WORLD_SIZE={workers} MASTER_ADDR={head} MASTER_PORT={port} python"
SWEEP = [
    *["-m", "hydra.sweep.dir=out", "measurement.max_seconds=0.4,600"],
    *[text for text in TINY if text.startswith("measurement") and "seconds" not in text],
    *["measurement.baseline=none", "batch.size=8", "--", *SCRIPT.split(), f"{SCRIPTS}/train.py"],
    *["--batch", "{local_batch_size}"],
]


def test_the_sbatch_file_measures_over_two_nodes_and_a_cancelled_job_ends_on_all(cluster, tmp_path):
    """A sweep of two jobs; the second would take long. A training without a script is the same to Slurm."""
    done = cluster.run(tmp_path, *submit(*SWEEP), PATH=ACTIVATED)
    assert done.returncode == 0, done.stderr
    first, second = (tmp_path / "out" / number / "result.json" for number in "01")
    assert wait_until(second.exists, 150), printed(tmp_path)  # written when the job starts
    result = json.loads(first.read_text())
    assert len(result["blocks"][0]["arms"]["candidate"]["processes"]) == 2
    assert result["environment"]["local_world_size"] == 1
    assert cluster.commands("python")
    assert cluster.run(tmp_path, "scancel", done.stdout.split()[-1]).returncode == 0
    before_they_are_killed = 25  # by torchrun and by Slurm, both after 30 seconds
    assert wait_until(lambda: not cluster.commands("python"), before_they_are_killed), cluster.commands("python")
