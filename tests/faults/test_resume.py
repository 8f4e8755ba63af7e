"""`resume=FOLDER`: what is missing is measured, what is there stays, and nothing is run that only the folder names."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy
import pandas as pd
import pytest
from conftest import TINY, composed, tiny
from deeds import Place, kill
from fault_helpers import Faulty, run_config, run_job

from dpexp.cli import app, resume, runner
from dpexp.errors import ConfigError, DataError, WorkerError
from dpexp.launchers.local import LocalLauncher
from dpexp.machine.files import lock_folder
from dpexp.measurement import job
from dpexp.processes.heartbeat import TRAINING
from dpexp.results import storage
from dpexp.results.phases import COMPUTE

OWN = [override for override in TINY if not override.startswith("model.")]
SWEEP = [*TINY, "workers=1,2", "measurement.baseline=none", "measurement.phases=false"]  # few figures to draw
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
    outcome = dpexp(f"resume={sweep}")
    assert (outcome.status, statuses(sweep)) == (0, ["ok", "ok"])
    assert (sweep / "0" / "result.json").read_bytes() == good


def test_what_is_no_good_result_of_the_same_settings_is_measured_again(tmp_path):
    run_job(tmp_path, "workers=2")
    measured = storage.read(tmp_path / storage.FILE_NAME)
    other = tiny("workers=1")
    for left in (
        replace(measured, status="failed", error="rank 1 was killed", blocks=[]),
        replace(measured, status="unfinished", blocks=[]),
        replace(measured, config=other, config_sha256=other.sha256),
        None,
    ):
        if left is None:
            (tmp_path / storage.FILE_NAME).write_text("{")
        else:
            storage.write(left, tmp_path)
        assert run_job(tmp_path, "workers=2", resume=True)
        again = storage.read(tmp_path / storage.FILE_NAME)
        assert (again.status, again.config) == ("ok", measured.config)


def test_a_finished_sweep_is_only_reported_again(dpexp, measured_once, sweep):
    before = {path: path.read_bytes() for path in sweep.glob("*/result.json")}
    table = (sweep / "results.csv").read_bytes()
    outcome = dpexp("-m", f"resume={sweep}")
    assert outcome.status == 0
    assert "2 of 2 jobs had already been measured" in outcome.out
    assert {path: path.read_bytes() for path in sweep.glob("*/result.json")} == before
    assert (sweep / "results.csv").read_bytes() == table.replace(str(measured_once).encode(), str(sweep).encode())


def test_a_single_run_is_resumed_too(dpexp, tmp_path):
    assert dpexp(*TINY).status == 0
    (tmp_path / "out" / "result.json").unlink()
    assert dpexp(f"resume={tmp_path / 'out'}").status == 0
    assert storage.read(tmp_path / "out" / "result.json").status == "ok"


def test_kept_blocks_count_and_new_ones_are_warmed_up_again(tmp_path):
    settings = ["workers=2", "measurement.repeats=3", "measurement.warmup=1"]
    with pytest.raises(WorkerError):
        run_job(tmp_path, *settings, launcher=Faulty(Place(TRAINING, COMPUTE, 2), kill, 1, number=2))
    first = storage.read(tmp_path / storage.FILE_NAME)
    assert [block.warmup for block in first.blocks] == [True, False]
    assert run_job(tmp_path, *settings, resume=True)
    finished = storage.read(tmp_path / storage.FILE_NAME)
    assert finished.blocks[:2] == first.blocks
    assert [block.warmup for block in finished.blocks] == [True, False, True, False, False]
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
def test_a_file_that_changed_is_named_and_only_the_user_discards_results(tmp_path, with_files, name):
    config, folder = composed(*with_files), tmp_path / "out"
    folder.mkdir()
    assert [run_config(config, folder, resume=True) for _ in range(2)] == [True, False]
    good = (folder / storage.FILE_NAME).read_bytes()
    with (tmp_path / CHANGES[name]).open("ab") as file:
        file.write(b"\n")
    with pytest.raises(ConfigError, match=f"{name} changed since this job was measured; .* add anew=true"):
        run_config(config, folder, resume=True)
    assert (folder / storage.FILE_NAME).read_bytes() == good
    assert run_config(config, folder, resume=True, anew=True)
    assert not run_config(config, folder, resume=True)


def test_a_good_result_stays_until_the_changed_data_can_be_loaded(tmp_path, with_files):
    config, folder = composed(*with_files), tmp_path / "out"
    folder.mkdir()
    run_config(config, folder)
    good = (folder / storage.FILE_NAME).read_bytes()
    (tmp_path / "data.npz").write_bytes((tmp_path / "data.npz").read_bytes()[:-100])
    with pytest.raises(DataError):
        run_config(config, folder, resume=True, anew=True)
    assert (folder / storage.FILE_NAME).read_bytes() == good


def test_a_builder_that_is_not_importable_here_is_refused(dpexp, tmp_path, with_files, monkeypatch):
    assert dpexp("-m", *with_files, "workers=1,2").status == 0
    good = {path: path.read_bytes() for path in tmp_path.glob("out/*/result.json")}
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(tmp_path)])
    sys.modules.pop("model_that_changes")
    outcome = dpexp(f"resume={tmp_path / 'out'}", *with_files, "workers=1,2")
    assert (outcome.status, outcome.err.count("\n")) == (2, 1)
    assert "no module model_that_changes can be imported from" in outcome.err
    assert {path: path.read_bytes() for path in tmp_path.glob("out/*/result.json")} == good


def test_the_flag_measures_again_what_depends_on_changed_files(dpexp, tmp_path, with_files):
    assert dpexp("-m", *with_files, "workers=1,2").status == 0
    (tmp_path / "helper_that_changes.py").write_text("# other\n")
    again = [f"resume={tmp_path / 'out'}", *with_files, "workers=1,2"]
    assert "helper_that_changes changed since" in dpexp(*again).err
    assert dpexp(*again, "anew=true").status == 0
    assert statuses(tmp_path / "out") == ["ok", "ok"]


@pytest.mark.parametrize("name", ["model_that_changes.py", "data.npz"])
def test_a_file_edited_while_a_job_runs_fails_that_job(tmp_path, with_files, name):
    class EditingLauncher(LocalLauncher):
        def segments(self, works):
            with (tmp_path / name).open("ab") as file:
                file.write(b"\n")
            return super().segments(works)

    folder = tmp_path / "out"
    folder.mkdir()
    with pytest.raises(DataError, match="changed while this command was running"):
        run_config(composed(*with_files, "workers=2"), folder, launcher=EditingLauncher())
    recorded = storage.read(folder / storage.FILE_NAME)
    assert (recorded.status, recorded.blocks) == ("failed", [])


@pytest.mark.parametrize("multirun", [[], ["-m"]], ids=["run", "sweep"])
def test_a_folder_that_holds_results_takes_no_others(dpexp, tmp_path, multirun):
    assert dpexp(*multirun, *TINY).status == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    outcome = dpexp(*multirun, *TINY, "seed=1")
    assert (outcome.status, outcome.err.count("\n")) == (2, 1)
    assert f"it holds the results of another command; finish that one with resume={tmp_path / 'out'}" in outcome.err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json")} == before


def test_a_diverged_job_starts_from_nothing(tmp_path):
    run_job(tmp_path)
    storage.write(replace(storage.read(tmp_path / storage.FILE_NAME), status="diverged"), tmp_path)
    assert run_job(tmp_path, resume=True)


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
    outcome = dpexp(f"resume={sweep}")
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
    assert dpexp(f"resume={tmp_path / 'out'}").status == 2
    assert path.read_bytes() == before


def test_the_watch_over_processes_may_change(dpexp, sweep):
    outcome = dpexp(f"resume={sweep}", "launch.timeout_seconds=50")
    assert "2 of 2 jobs had already been measured" in outcome.out


def test_two_processes_do_not_work_in_one_folder(dpexp, sweep):
    with lock_folder(sweep):
        outcome = dpexp(f"resume={sweep}")
    assert outcome.status == 2
    assert outcome.err == f"dpexp: {sweep}: another dpexp is writing there; wait until it ends\n"


MISTAKES = {
    "no folder": ("resume=nowhere", "command.json is missing or not a regular file"),
    "nothing named": ("resume=", "name the folder of one sweep or run"),
    "another setting": ("resume=SWEEP workers=4", "workers=4 with resume="),
    "twice": ("resume=SWEEP resume=SWEEP", "name the folder of one sweep or run"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_line(dpexp, sweep, arguments, message):
    outcome = dpexp(*arguments.replace("SWEEP", str(sweep)).split())
    assert (outcome.status, outcome.err.count("\n")) == (2, 1)
    assert message in outcome.err


@pytest.mark.parametrize("content", ["{", "[]", '{"format": "other"}', ""])
def test_a_damaged_command_is_one_line(dpexp, sweep, content):
    (sweep / "command.json").write_text(content)
    outcome = dpexp(f"resume={sweep}")
    assert (outcome.status, outcome.err.count("\n")) == (2, 1)
    assert "command.json is damaged" in outcome.err


@pytest.mark.parametrize(
    "code",
    [
        "hydra.callbacks.evil._target_=deeds.make_ruins",
        "+hydra.callbacks.evil={_target_:deeds.make_ruins}",
        "hydra/launcher=evil",
        "+model@hydra.callbacks.evil=custom",
        "--experimental-rerun=evil.pickle",
        "--config-dir=evil",
        "++hydra.sweeper._target_=deeds.make_ruins",
    ],
)
def test_code_for_hydra_is_not_taken_from_the_folder(dpexp, sweep, code, monkeypatch):
    monkeypatch.chdir(sweep)
    change_words(sweep, [*SWEEP, code])
    assert dpexp(f"resume={sweep}").status in (0, 2)
    assert not list(sweep.rglob("RUINS"))


def change_words(sweep, overrides):
    """Change the words that the folder keeps; its second job is missing."""
    (sweep / "command.json").write_text(json.dumps({"overrides": overrides, "multirun": True, "config_dir": None}))
    (sweep / "1" / "result.json").unlink()


def words_with_builder(builder):
    return [*OWN, "workers=1,2", "model=custom", f"model.builder={builder}"]


def with_builder(sweep, builder):
    change_words(sweep, words_with_builder(builder))


@pytest.mark.parametrize("beside", [[], ["deeds:build"], ["deeds:make_ruins2"]])
def test_a_builder_is_not_taken_from_the_folder(dpexp, sweep, beside, monkeypatch):
    monkeypatch.chdir(sweep)
    with_builder(sweep, "deeds:make_ruins")
    outcome = dpexp(f"resume={sweep}", *[word for builder in beside for word in words_with_builder(builder)])
    assert (outcome.status, outcome.err.count("\n")) == (2, 1)
    assert "it runs code of yours; if you trust it, type python -m dpexp" in outcome.err or beside
    assert not list(sweep.rglob("RUINS"))


def test_a_builder_that_the_user_names_is_run(dpexp, sweep):
    with_builder(sweep, "user_models:linear")
    assert dpexp(f"resume={sweep}", *words_with_builder("user_models:linear")).status == 0
    assert storage.read(sweep / "1" / "result.json").config.model.builder == "user_models:linear"


@pytest.mark.parametrize("folder", ["..", "../elsewhere", "/tmp/elsewhere"])
def test_no_job_lies_outside_the_folder(dpexp, sweep, folder):
    change_words(sweep, [*SWEEP, f"hydra.sweep.subdir={folder}"])
    outcome = dpexp(f"resume={sweep}")
    assert (outcome.status, outcome.err.count("\n")) == (2, 1)
    assert f"hydra.sweep.subdir={folder}: it must lie below the command's folder" in outcome.err


def test_a_command_that_is_no_regular_file_is_one_line(dpexp, sweep):
    (sweep / "command.json").unlink()
    os.mkfifo(sweep / "command.json")
    outcome = dpexp(f"resume={sweep}")
    assert (outcome.status, outcome.err.count("\n")) == (2, 1)
    assert "not a regular file" in outcome.err


def test_the_command_of_an_older_version_is_named(dpexp, sweep):
    (sweep / "command.json").write_text('{"format": "dpexp-command", "version": 1}')
    assert "command.json is damaged, or of another version of dpexp" in dpexp(f"resume={sweep}").err


def test_a_sweep_that_an_experiment_asks_for_is_resumed_in_its_folder(dpexp, tmp_path):
    """The experiment's own YAML makes it a sweep, without -m."""
    assert dpexp("experiment=quick", *MNIST).status == 0
    folder = tmp_path / "out"
    good = (folder / "0" / "result.json").read_bytes()
    shutil.rmtree(folder / "1")
    outcome = dpexp(f"resume={folder}")
    assert (outcome.status, statuses(folder)) == (0, ["ok", "ok"])
    assert "1 of 2 jobs had already been measured" in outcome.out
    assert (folder / "0" / "result.json").read_bytes() == good
    assert (folder / "1" / ".hydra" / "overrides.yaml").exists()


def test_where_data_is_cached_is_no_other_setting(tmp_path, monkeypatch):
    words = ["data=fashion_mnist", "workers=2"]
    monkeypatch.setenv("DPEXP_CACHE", str(tmp_path / "first"))
    resume.keep(tmp_path, resume.Words(words))
    (before,) = resume.read_plan(tmp_path, resume.Words([])).jobs
    monkeypatch.setenv("DPEXP_CACHE", str(tmp_path / "second"))
    for typed, cache in (([], "second"), ([f"data.cache={tmp_path / 'third'}"], "third")):
        (job,) = resume.read_plan(tmp_path, resume.Words(typed)).jobs
        assert (job.config.data.cache, job.config.sha256) == (str(tmp_path / cache), before.config.sha256)


def test_a_model_from_ones_own_yaml_is_resumed_by_typing_the_command_again(dpexp, tmp_path):
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "mine.yaml").write_text("name: custom\nbuilder: user_models:linear\narguments: {}\n")
    flags = ["--config-dir", str(tmp_path / "mine")]
    assert dpexp("-m", *flags, *OWN, "model=mine", "workers=1,2").status == 0
    folder = tmp_path / "out"
    (folder / "1" / "result.json").unlink()
    assert "it runs code of yours" in dpexp(f"resume={folder}").err
    assert dpexp(f"resume={folder}", *OWN, "model=mine", "workers=1,2").status == 0
    assert statuses(folder) == ["ok", "ok"]


def test_the_typed_overrides_may_stand_beside_the_folder(dpexp, sweep):
    (sweep / "1" / "result.json").unlink()
    assert dpexp("-m", *SWEEP, f"resume={sweep}").status == 0


def test_a_script_is_resumed_by_typing_its_command_again(dpexp, tmp_path, monkeypatch):
    script = [
        sys.executable,
        str(Path(__file__).parents[1] / "scripts" / "train.py"),
        "--note=${{x}} it's",
        "{workers}",
    ]
    monkeypatch.setattr(runner, "measure_jobs", lambda *arguments: iter(()))  # only the folder matters
    settings = [f"resume={tmp_path / 'out'}", "workers=1", "batch.size=8"]
    assert app.main([f"hydra.run.dir={tmp_path / 'out'}", *settings[1:], "--", *script]) == 1
    assert "if you trust it, type python -m dpexp batch.size=8 'script.command=" in dpexp(settings[0]).err
    assert "with resume=" in dpexp(*settings, "--", *script, "--other").err
    outcome = dpexp(*settings, "--", *script)
    assert (outcome.status, outcome.err) == (1, "")
