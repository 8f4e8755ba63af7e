"""Trackers log each job when its result is on disk; read back with the trackers' own libraries."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dpexp.cli import trackers
from dpexp.config.compose import compose_experiment
from dpexp.errors import ConfigError

JOB = "workers=1 strategy=sequential data=synthetic data.size=256 epochs=1 measurement.precision=null".split()
JOB += "measurement.repeats=1 measurement.warmup=0 model.hidden=[4] measurement.best_sequential=false".split()

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # what the trackers warn of is theirs


@pytest.fixture
def tracked(dpexp, tmp_path, monkeypatch):
    """The command line in this process, whose trackers write below `tmp_path`."""
    monkeypatch.chdir(tmp_path)
    return lambda tracker: dpexp(*JOB, f"tracker={tracker}")


def test_tensorboard_has_the_figures_and_the_settings(tracked, tmp_path):
    pytest.importorskip("tensorboard")
    done = tracked("tensorboard")
    assert done.status == 0, done.err
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(next((tmp_path / "outputs" / "tensorboard").iterdir())))
    events.Reload()
    assert events.Scalars("speedup")[0].value == pytest.approx(speedup(tmp_path), rel=1e-5)
    assert "_hparams_/session_start_info" in events.summary_metadata


def test_mlflow_has_the_figures_and_the_settings(tracked, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    done = tracked("mlflow")
    assert done.status == 0, done.err
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/outputs/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("dpexp").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["speedup"] == pytest.approx(speedup(tmp_path))
    assert run.data.params["optimizer.lr"] == "0.01"


def test_wandb_has_the_figures_and_the_settings_offline(tmp_path):
    pytest.importorskip("wandb")
    command = [sys.executable, "-m", "dpexp", *JOB, "tracker=wandb", "hydra.run.dir=out"]  # wandb leaves processes
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    from wandb.proto import wandb_internal_pb2

    summary, settings = {}, {}
    for data in log_records(next((tmp_path / "outputs" / "wandb").glob("offline-run-*/*.wandb")).read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        summary |= {item.key or item.nested_key[0]: item.value_json for item in record.summary.update}
        settings |= {item.key: item.value_json for item in record.run.config.update}
    assert json.loads(summary["speedup"]) == pytest.approx(speedup(tmp_path))
    assert json.loads(settings["optimizer.lr"]) == 0.01


def log_records(content: bytes) -> list[bytes]:
    """The records of a file of wandb: LevelDB's log format, 32 KiB blocks, after a header of 7 bytes."""
    found, part, at = [], b"", 7
    while at + 7 <= len(content):
        room = -at % 32768 or 32768
        if room < 7:
            at += room
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        part += content[at + 7 : at + 7 + length]
        if kind in (1, 4):  # whole, or the last part
            found.append(part)
            part = b""
        at += 7 + length
    return found


def test_a_tracker_that_fails_is_told_and_the_result_stays(tracked, tmp_path):
    pytest.importorskip("tensorboard")
    (tmp_path / "outputs").write_text("in the way")
    done = tracked("tensorboard")
    assert done.status == 1
    (line,) = done.err.strip().splitlines()
    assert line.startswith("dpexp: tracker=tensorboard did not log ")
    assert json.loads((tmp_path / "out" / "result.json").read_text())["status"] == "ok"


def test_a_missing_package_is_told_before_the_first_job(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="tracker=wandb needs the package wandb: pip install wandb, or tracker=none"):
        trackers.check(compose_experiment("tracker=wandb").tracker)


def test_the_tracker_changes_neither_the_measurement_nor_its_series():
    plain, tracked = compose_experiment(), compose_experiment("tracker=wandb")
    assert plain.sha256 == tracked.sha256


def speedup(folder: Path) -> float:
    from dpexp.analysis.table import aggregate

    return aggregate([folder / "out"]).rows[0].speedup.value
