"""The product, end to end: real sweeps of real MNIST through the command line."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from basics import ROOT, TINY, Outcome

from dpexp.analysis.table import aggregate
from dpexp.cli import app
from dpexp.machine.environment import usable_cores

SHORT = ["measurement.repeats=2", "measurement.precision=null", "optimizer.lr=0.2"]
SHORT += ["measurement.best_sequential=false", "measurement.max_seconds=3"]  # to find it takes longer than all the rest


@pytest.mark.slow
def test_a_sweep_of_mnist_ends_in_table_figures_and_page(dpexp, tmp_path):
    quick = ["measurement.max_seconds=0.5", "measurement.whole_trainings=always"]
    outcome = dpexp("-m", "workers=1,2", "data.size=512,1024", *SHORT, *quick)
    assert outcome.status == 0
    assert outcome.err == ""  # no progress bar where there is no terminal
    lines = [line for line in outcome.out.splitlines() if line.startswith("job ")]
    assert [line.partition(":")[0] for line in lines] == [f"job {number} of 4" for number in (1, 2, 3, 4)]
    folder = tmp_path / "out"
    table = pd.read_csv(folder / "results.csv")
    assert table.status.tolist() == ["ok"] * 4
    assert table[["data_size", "workers"]].values.tolist() == [[512, 1], [512, 2], [1024, 1], [1024, 2]]
    assert (table.speedup_low <= table.speedup).all()
    assert (table.speedup <= table.speedup_high).all()
    assert (table.test_accuracy > 0.2).all()
    for name in ("time", "speedup", "efficiency", "speedup_by_workers", "time_512", "time_1024"):
        assert (folder / "figures" / f"{name}.png").exists()
        assert (folder / "figures" / f"{name}.svg").exists()
    assert (folder / "report.html").exists()
    assert str(folder / "report.html") in outcome.out
    for job in range(4):
        result = json.loads((folder / str(job) / "result.json").read_text())
        assert result["config"]["data"]["name"] == "mnist"
        assert len(result["blocks"]) == 2
        assert (folder / str(job) / ".hydra" / "config.yaml").exists()


@pytest.fixture(scope="module")
def half_failed(tmp_path_factory):
    """A sweep of two jobs, of which the first fails: how it ended, and its folder."""
    folder = tmp_path_factory.mktemp("sweep") / "out"
    own = ["model=custom", "model.builder=user_models:break_in_training,user_models:linear"]
    tiny = [override for override in TINY if not override.startswith("model.")]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = app.main(["-m", *tiny, *own, "workers=1", f"hydra.sweep.dir={folder}"])
    return Outcome(status, out.getvalue(), err.getvalue()), folder


def test_a_failed_job_is_listed_and_the_others_are_measured(half_failed):
    outcome, folder = half_failed
    assert outcome.status == 1
    assert "no such luck" in outcome.err
    table = pd.read_csv(folder / "results.csv")
    assert sorted(table.status) == ["failed", "ok"]


def test_a_failed_job_is_named_by_what_varies(half_failed):
    outcome, _ = half_failed
    assert outcome.err.startswith("dpexp: job 1 of 2 (model.builder=user_models:break_in_training): ")
    assert "/0 (model.builder=user_models:break_in_training, 1 worker, 101 samples): " in outcome.out


def test_bad_input_that_shows_in_every_job_is_reported_once(dpexp, tmp_path):
    outcome = dpexp("-m", "data=arrays", "data.size=500", "data.path=nowhere.npz", "workers=1,2")
    assert outcome.status == 2
    assert outcome.err.count("\n") == 1
    assert outcome.out == ""
    assert not (tmp_path / "out" / "results.csv").exists()


def test_a_diverged_run_fails(dpexp):
    outcome = dpexp(*TINY, "optimizer.lr=1e300", "measurement.whole_trainings=always")
    assert outcome.status == 1
    assert "diverged: a loss is not a finite number" in outcome.err


def test_a_single_run_writes_one_result_and_prints_the_table(dpexp, tmp_path):
    outcome = dpexp(*TINY, "checkpoint=true")
    assert outcome.status == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        ".hydra",
        "model.pt",
        "result.json",
    ]
    assert "speedup" in outcome.out
    assert str(tmp_path / "out" / "result.json") in outcome.out


@pytest.mark.slow
def test_the_wheel_has_all_files_and_works_outside_the_checkout(tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    packed = tmp_path / "site" / "dpexp"
    assert _files(packed) == _files(ROOT / "dpexp") | {f"conf/{name}" for name in _files(ROOT / "conf")}
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", "dpexp", "--cfg", "job"]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "workers: 2" in run.stdout


def _files(folder: Path) -> set[str]:
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return {str(path) for path in paths if "__pycache__" not in path.parts}


def test_the_console_script_is_the_same_command():
    script = Path(sys.executable).parent / "dpexp"
    by_script = subprocess.run([script, "--cfg", "job"], capture_output=True, text=True, check=True)
    by_module = subprocess.run(
        [sys.executable, "-m", "dpexp", "--cfg", "job"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert by_script.stdout == by_module.stdout


@pytest.mark.slow
def test_the_splits_of_this_machines_cores_are_measured_and_compared(dpexp, tmp_path):
    quick = [text for text in TINY if "best_sequential" not in text and "repeats" not in text]
    outcome = dpexp("-m", "experiment=cores", *quick, "batch.scope=per_worker", "measurement.repeats=1")
    assert outcome.status == 0, outcome.err
    rows, cores = aggregate([tmp_path / "out"]).measured, usable_cores()
    assert {row.workers * row.threads_per_worker for row in rows} == {cores}
    assert {row.workers for row in rows} == {workers for workers in range(1, cores + 1) if cores % workers == 0}
    if cores == 2:  # both processes are in both jobs
        assert "2 workers x 1 thread, " in outcome.out
        assert "1 worker x 2 threads, " in outcome.out
        assert len({row.best_sequential_threads for row in rows}) == 1
