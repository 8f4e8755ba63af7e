"""`resume=FOLDER` beside the same command: what is missing is measured, and what is there stays."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy
import pandas as pd
import pytest
from basics import TINY, composed
from fault_helpers import Faulty, run_config, run_job
from worker_actions import Place, kill

from dpexp.cli import app, resume
from dpexp.errors import ConfigError, DataError, WorkerError
from dpexp.launchers.local import LocalLauncher
from dpexp.machine.files import lock_folder
from dpexp.measurement import job
from dpexp.measurement.record import VARIES
from dpexp.measurement.user_files import digests_of
from dpexp.phases import COMPUTE
from dpexp.processes.heartbeat import TRAINING
from dpexp.results import storage

OWN = [override for override in TINY if not override.startswith("model.")]
SWEEP = [*TINY, "workers=1,2", "measurement.baseline=none"]
MNIST = (
    "data.size=256 epochs=1 measurement.repeats=1 measurement.precision=null measurement.best_sequential=false "
    "measurement.max_seconds=0.4"
).split()


@pytest.fixture(scope="module")
def measured_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured") / "out"
    with contextlib.redirect_stdout(io.StringIO()):
        assert app.main(["-m", *SWEEP, f"hydra.sweep.dir={folder}"]) == 0
    return folder


@pytest.fixture
def sweep(measured_once, tmp_path):
    """A finished sweep of two jobs."""
    return shutil.copytree(measured_once, tmp_path / "out")


def statuses(sweep):
    return pd.read_csv(sweep / "results.csv").status.tolist()


def test_a_missing_job_is_measured_and_the_others_stay(dpexp, sweep):
    good = (sweep / "0" / "result.json").read_bytes()
    (sweep / "1" / "result.json").unlink()
    outcome = dpexp("-m", *SWEEP, f"resume={sweep}")
    assert (outcome.status, statuses(sweep)) == (0, ["ok", "ok"])
    assert (sweep / "0" / "result.json").read_bytes() == good


def test_what_is_no_good_result_of_the_same_settings_is_measured_again(tmp_path):
    run_job(tmp_path, "workers=2")
    measured = storage.read(tmp_path / storage.FILE_NAME)
    for left in (
        replace(measured, status="failed", error="rank 1 was killed", blocks=[]),
        replace(measured, status="unfinished", blocks=[]),
        None,
    ):
        if left is None:
            (tmp_path / storage.FILE_NAME).write_text("{")
        else:
            storage.write(left, tmp_path)
        assert run_job(tmp_path, "workers=2", resume=True)
        again = storage.read(tmp_path / storage.FILE_NAME)
        assert (again.status, again.config) == ("ok", measured.config)


def test_a_result_of_other_settings_is_refused(tmp_path):
    run_job(tmp_path, "workers=2")
    with pytest.raises(ConfigError, match=r"result.json was measured with other settings; resume= needs the same"):
        run_job(tmp_path, "workers=1", resume=True)


def test_how_a_job_is_measured_may_change(tmp_path):
    run_job(tmp_path, "workers=2")
    assert not run_job(tmp_path, "workers=2", "measurement.max_seconds=9", "launch.timeout_seconds=50", resume=True)


def test_a_finished_sweep_is_only_reported_again(dpexp, measured_once, sweep):
    before = {path: path.read_bytes() for path in sweep.glob("*/result.json")}
    table = (sweep / "results.csv").read_bytes()
    outcome = dpexp("-m", *SWEEP, f"resume={sweep}")
    assert outcome.status == 0
    assert "2 of 2 jobs had already been measured" in outcome.out
    assert {path: path.read_bytes() for path in sweep.glob("*/result.json")} == before
    assert (sweep / "results.csv").read_bytes() == table.replace(str(measured_once).encode(), str(sweep).encode())


def test_a_single_run_is_resumed_too(dpexp, tmp_path):
    assert dpexp(*TINY).status == 0
    (tmp_path / "out" / "result.json").unlink()
    assert dpexp(*TINY, f"resume={tmp_path / 'out'}").status == 0
    assert storage.read(tmp_path / "out" / "result.json").status == "ok"


def test_finished_blocks_count_and_the_missing_ones_are_made(tmp_path):
    settings = ["workers=2", "measurement.repeats=3"]
    with pytest.raises(WorkerError):
        run_job(tmp_path, *settings, launcher=Faulty(Place(TRAINING, COMPUTE, 2), kill, 1, number=2))
    first = storage.read(tmp_path / storage.FILE_NAME)
    assert len(first.blocks) == 2
    assert run_job(tmp_path, *settings, resume=True)
    finished = storage.read(tmp_path / storage.FILE_NAME)
    assert finished.blocks[:2] == first.blocks
    assert len(finished.blocks) == 3
    assert (finished.started_at, len(finished.resumed_at)) == (first.started_at, 1)
    assert not run_job(tmp_path, *settings, resume=True)  # nothing is missing


def test_the_number_of_threads_of_the_first_blocks_is_kept_for_the_others(tmp_path):
    settings = ["workers=2", "measurement.repeats=2", "measurement.best_sequential=true"]
    run_job(tmp_path, *settings)
    measured = storage.read(tmp_path / storage.FILE_NAME)
    block = measured.blocks[0]
    baseline = block.arms["baseline"]
    arms = {
        "baseline": baseline,
        "best_sequential": replace(baseline, processes=[replace(one, threads=3) for one in baseline.processes]),
        "candidate": block.arms["candidate"],
    }
    storage.write(replace(measured, status="unfinished", blocks=[replace(block, arms=arms)]), tmp_path)
    run_job(tmp_path, *settings, resume=True)
    again = storage.read(tmp_path / storage.FILE_NAME).blocks[1].arms
    assert again["best_sequential"].threads == 3


def test_weights_that_are_gone_are_trained_again(tmp_path):
    run_job(tmp_path, "checkpoint=true")
    (tmp_path / job.CHECKPOINT).unlink()
    assert run_job(tmp_path, "checkpoint=true", resume=True)
    assert (tmp_path / job.CHECKPOINT).exists()


def test_blocks_are_kept_while_the_weights_are_still_to_come(tmp_path):
    run_job(tmp_path, "checkpoint=true", "measurement.repeats=2")
    measured = storage.read(tmp_path / storage.FILE_NAME)
    (tmp_path / "model.pt").unlink()
    first = measured.blocks[:1]
    storage.write(replace(measured, status="unfinished", blocks=first, trainings={}), tmp_path)
    run_job(tmp_path, "checkpoint=true", "measurement.repeats=2", resume=True)
    again = storage.read(tmp_path / storage.FILE_NAME)
    assert (again.blocks[:1], len(again.blocks)) == (first, 2)
    assert (tmp_path / "model.pt").exists()


def test_whole_trainings_that_are_missing_are_made_though_all_blocks_are_there(tmp_path):
    settings = ["measurement.whole_trainings=auto", "measurement.max_seconds=3"]
    run_job(tmp_path, *settings)
    measured = storage.read(tmp_path / storage.FILE_NAME)
    assert set(measured.trainings) == {"candidate", "baseline"}
    storage.write(replace(measured, status="unfinished", trainings={}), tmp_path)
    run_job(tmp_path, *settings, resume=True)
    again = storage.read(tmp_path / storage.FILE_NAME)
    assert (again.blocks, set(again.trainings)) == (measured.blocks, set(measured.trainings))


def test_blocks_of_other_code_do_not_count(tmp_path):
    run_job(tmp_path)
    measured = storage.read(tmp_path / storage.FILE_NAME)
    old = replace(measured, status="unfinished", environment=replace(measured.environment, code_sha256="0123"))
    storage.write(old, tmp_path)
    run_job(tmp_path, resume=True)
    assert len(storage.read(tmp_path / storage.FILE_NAME).blocks) == 1


MODEL = """
import helper_that_changes
from torch import nn

def build(shape, classes):
    return nn.Linear(*shape, classes)
"""


@pytest.fixture
def with_files(tmp_path, monkeypatch):
    """A job with a model and data in the user's files."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "model_that_changes.py").write_text(MODEL)
    (tmp_path / "helper_that_changes.py").write_text("")
    inputs, labels = numpy.eye(101, 4), numpy.arange(101) % 3
    splits = {"train_inputs": inputs, "train_labels": labels, "test_inputs": inputs, "test_labels": labels}
    numpy.savez(tmp_path / "data.npz", **splits)
    settings = ["data=arrays", f"data.path={tmp_path / 'data.npz'}", "model=custom"]
    tiny_settings = [text for text in OWN if not text.startswith("data.") or text == "data.size=101"]
    yield [*tiny_settings, *settings, "model.builder=model_that_changes:build"]
    for name in ("model_that_changes", "helper_that_changes"):
        sys.modules.pop(name, None)


CHANGES = {"model_that_changes": "model_that_changes.py", "helper_that_changes": "helper_that_changes.py"}
CHANGES["data.path"] = "data.npz"


@pytest.mark.parametrize("name", CHANGES)
def test_a_file_that_changed_is_named_and_the_result_stays(tmp_path, with_files, name):
    config, folder = composed(*with_files), tmp_path / "out"
    folder.mkdir()
    assert [run_config(config, folder, resume=True) for _ in range(2)] == [True, False]
    good = (folder / storage.FILE_NAME).read_bytes()
    with (tmp_path / CHANGES[name]).open("ab") as file:
        file.write(b"\n")
    with pytest.raises(ConfigError, match=f"{name} changed since this job was measured; restore the old files, or"):
        run_config(config, folder, resume=True)
    assert (folder / storage.FILE_NAME).read_bytes() == good


def test_a_file_that_the_script_writes_itself_may_differ(tmp_path):
    run_job(tmp_path)
    written = tmp_path / "state.json"
    written.write_text("{}")
    measured = storage.read(tmp_path / storage.FILE_NAME)
    storage.write(replace(measured, user_files={str(written): VARIES}), tmp_path)
    assert not run_job(tmp_path, resume=True)


def test_the_files_of_the_first_blocks_are_remembered(tmp_path):
    run_job(tmp_path)
    module = tmp_path / "module.py"
    module.write_text("")
    measured = storage.read(tmp_path / storage.FILE_NAME)
    storage.write(replace(measured, status="unfinished", user_files=digests_of([str(module)])), tmp_path)
    assert run_job(tmp_path, resume=True)
    assert str(module) in storage.read(tmp_path / storage.FILE_NAME).user_files


def test_a_job_without_a_block_is_measured_when_the_mistake_in_its_model_is_mended(tmp_path, with_files):
    config, folder = composed(*with_files), tmp_path / "out"
    folder.mkdir()
    (tmp_path / "model_that_changes.py").write_text("raise RuntimeError('no such luck')")
    with pytest.raises(ConfigError, match="no such luck"):
        run_config(config, folder)
    assert storage.read(folder / storage.FILE_NAME).status == "failed"
    (tmp_path / "model_that_changes.py").write_text(MODEL)
    assert run_config(config, folder, resume=True)


def test_a_builder_that_is_not_importable_here_is_refused(dpexp, tmp_path, with_files, monkeypatch):
    assert dpexp("-m", *with_files, "workers=1,2").status == 0
    good = {path: path.read_bytes() for path in tmp_path.glob("out/*/result.json")}
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(tmp_path)])
    sys.modules.pop("model_that_changes")
    outcome = dpexp("-m", f"resume={tmp_path / 'out'}", *with_files, "workers=1,2")
    assert (outcome.status, outcome.err.count("\n")) == (2, 1)
    assert "no module model_that_changes can be imported from" in outcome.err
    assert {path: path.read_bytes() for path in tmp_path.glob("out/*/result.json")} == good


class EditingLauncher(LocalLauncher):
    """Edits a file of the user's before it starts a training."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def segments(self, specs):
        with self.path.open("ab") as file:
            file.write(b"\n")
        return super().segments(specs)


def test_a_file_edited_while_two_commands_are_compared_fails_the_comparison(tmp_path, with_files):
    configs = {"before": composed(*with_files, "workers=2"), "after": composed(*with_files, "workers=1")}
    launcher = EditingLauncher(tmp_path / "model_that_changes.py")
    with pytest.raises(DataError, match=r"model_that_changes changed while this command was running"):
        job.measure_in_turns(configs, "before", "after", tmp_path, launcher)


@pytest.mark.parametrize("name", ["model_that_changes.py", "data.npz"])
def test_a_file_edited_while_a_job_runs_fails_that_job(tmp_path, with_files, name):
    folder = tmp_path / "out"
    folder.mkdir()
    with pytest.raises(DataError, match="changed while this command was running"):
        run_config(composed(*with_files, "workers=2"), folder, launcher=EditingLauncher(tmp_path / name))
    recorded = storage.read(folder / storage.FILE_NAME)
    assert (recorded.status, recorded.blocks) == ("failed", [])


@pytest.mark.parametrize("multirun", [[], ["-m"]], ids=["run", "sweep"])
def test_a_folder_that_holds_results_takes_no_others(dpexp, tmp_path, multirun):
    assert dpexp(*multirun, *TINY).status == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    outcome = dpexp(*multirun, *TINY, "seed=1")
    assert (outcome.status, outcome.err.count("\n")) == (2, 1)
    assert f"to finish the command that wrote them, add resume={tmp_path / 'out'} to that command" in outcome.err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json")} == before


@pytest.mark.parametrize("checkpoint", ["true", "false"])
def test_a_diverged_job_starts_from_nothing(tmp_path, checkpoint):
    """Also if the weights are missing, as they are if it diverged before they were written."""
    settings = [f"checkpoint={checkpoint}"]
    run_job(tmp_path, *settings)
    (tmp_path / job.CHECKPOINT).unlink(missing_ok=True)
    diverged = replace(storage.read(tmp_path / storage.FILE_NAME), status="diverged")
    storage.write(diverged, tmp_path)
    assert run_job(tmp_path, *settings, resume=True)
    assert storage.read(tmp_path / storage.FILE_NAME).started_at != diverged.started_at


def test_times_of_another_machine_are_refused(tmp_path):
    run_job(tmp_path)
    measured = storage.read(tmp_path / storage.FILE_NAME)
    storage.write(replace(measured, environment=replace(measured.environment, cpu_model="Abacus")), tmp_path)
    with pytest.raises(ConfigError, match="was measured on Abacus"):
        run_job(tmp_path, resume=True)
    assert storage.read(tmp_path / storage.FILE_NAME).environment.cpu_model == "Abacus"


@pytest.mark.parametrize("what", ["version", "machine"])
def test_a_folder_with_results_of_another_machine_or_version_is_not_touched(dpexp, sweep, what):
    path = sweep / "0" / "result.json"
    values = json.loads(path.read_text())
    if what == "version":
        values["version"] += 1
    else:
        values["environment"]["cpu_model"] = "Abacus"
    path.write_text(json.dumps(values))
    (sweep / "1" / "result.json").unlink()
    before = path.read_bytes()
    outcome = dpexp("-m", *SWEEP, f"resume={sweep}")
    assert (outcome.status, outcome.err.count("\n")) == (2, 1)
    assert "start a" in outcome.err
    assert path.read_bytes() == before
    assert not (sweep / "1" / "result.json").exists()


def test_data_that_are_gone_cost_no_finished_block(dpexp, tmp_path):
    arrays = tmp_path / "mine.npz"
    inputs, labels = numpy.zeros((150, 2), numpy.float32), numpy.arange(150) % 2
    numpy.savez(arrays, train_inputs=inputs, train_labels=labels, test_inputs=inputs, test_labels=labels)
    own = ["data=arrays", f"data.path={arrays}", "data.size=101", *(one for one in TINY if not one.startswith("data"))]
    assert dpexp(*own).status == 0
    path = tmp_path / "out" / "result.json"
    storage.write(replace(storage.read(path), status="unfinished"), path.parent)
    before = path.read_bytes()
    arrays.unlink()
    assert dpexp(*own, f"resume={tmp_path / 'out'}").status == 2
    assert path.read_bytes() == before


def test_two_processes_do_not_work_in_one_folder(dpexp, sweep):
    with lock_folder(sweep):
        outcome = dpexp("-m", *SWEEP, f"resume={sweep}")
    assert outcome.status == 2
    assert outcome.err == f"dpexp: {sweep}: another dpexp is writing there; wait until it ends\n"


MISTAKES = {
    "no folder": ("resume=nowhere", "resume=nowhere: name the folder of one sweep or run"),
    "nothing named": ("resume=", "name the folder of one sweep or run"),
    "twice": ("resume=SWEEP resume=SWEEP", "name the folder of one sweep or run"),
    "another setting": ("-m TINY workers=1,4 resume=SWEEP", "1/result.json was measured with other settings"),
    "fewer jobs": ("-m TINY workers=1 resume=SWEEP", "1/result.json: it does not belong to this command"),
    "no sweep": ("TINY resume=SWEEP", "0/result.json: it does not belong to this command"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_line(dpexp, sweep, arguments, message):
    settings = " ".join(SWEEP).replace("workers=1,2 ", "")
    outcome = dpexp(*arguments.replace("SWEEP", str(sweep)).replace("TINY", settings).split())
    assert (outcome.status, outcome.err.count("\n")) == (2, 1)
    assert message in outcome.err


def test_no_job_lies_outside_the_folder(dpexp):
    outcome = dpexp("-m", *SWEEP, "hydra.sweep.subdir=../elsewhere")
    assert (outcome.status, outcome.err.count("\n")) == (2, 1)
    assert "hydra.sweep.subdir: leave it out" in outcome.err


def test_a_sweep_that_an_experiment_asks_for_is_resumed_in_its_folder(dpexp, tmp_path):
    """The experiment's own YAML makes it a sweep, without -m."""
    assert dpexp("experiment=quick", *MNIST).status == 0
    folder = tmp_path / "out"
    good = (folder / "0" / "result.json").read_bytes()
    shutil.rmtree(folder / "1")
    outcome = dpexp("experiment=quick", *MNIST, f"resume={folder}")
    assert (outcome.status, statuses(folder)) == (0, ["ok", "ok"])
    assert "1 of 2 jobs had already been measured" in outcome.out
    assert (folder / "0" / "result.json").read_bytes() == good
    assert (folder / "1" / ".hydra" / "overrides.yaml").exists()


def test_where_data_is_cached_is_no_other_setting(tmp_path):
    folders = [f"data.cache={tmp_path / name}" for name in ("first", "second")]
    first, second = (composed("data=fashion_mnist", folder) for folder in folders)
    assert (first.sha256, first.data.cache) == (second.sha256, str(tmp_path / "first"))


def test_a_model_from_ones_own_yaml_is_resumed(dpexp, tmp_path):
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "mine.yaml").write_text("name: custom\nbuilder: user_models:linear\narguments: {}\n")
    command = ["-m", "--config-dir", str(tmp_path / "mine"), *OWN, "model=mine", "workers=1,2"]
    assert dpexp(*command).status == 0
    folder = tmp_path / "out"
    (folder / "1" / "result.json").unlink()
    assert dpexp(*command, f"resume={folder}").status == 0
    assert statuses(folder) == ["ok", "ok"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["-m", "workers=1,2", "hydra.sweep.dir=there"],
        ["workers=1", "hydra.run.dir=there", "--", "python", "train.py", "--note=${{x}} it's", "{workers}", "resume=1"],
        ["workers=1", "model.arguments={a: 'b c'}", "resume=elsewhere"],
    ],
)
def test_the_hint_is_the_same_command_with_the_folder(arguments):
    first, *words = shlex.split(resume.resume_command(arguments, Path("my folder")))
    assert first == "python"
    given = [word for word in arguments if not word.startswith(("hydra.", "resume=else"))]
    assert [word for word in words if word != "resume=my folder"] == ["-m", "dpexp", *given]
    assert words.index("resume=my folder") < words.index("--") if "--" in words else words[-1] == "resume=my folder"
