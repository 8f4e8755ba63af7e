"""The command line: one line for each mistake, help that helps, exit statuses."""

from __future__ import annotations

import pytest
from conftest import TINY

BAD = {
    "workers 0": ["workers=0"],
    "workers negative": ["workers=-1"],
    "workers a fraction": ["workers=1.5"],
    "workers a word": ["workers=two"],
    "more samples than there are": ["data.size=60001"],
    "more samples than in the file": ["data=arrays", "data.size=200", "data.path=ARRAYS"],
    "a batch over the size": ["data.size=100"],
    "sequential with two workers": ["strategy=sequential", "workers=2"],
    "a global batch that can't be split": ["batch.scope=global", "workers=3"],
    "unknown key": ["wrokers=2"],
    "unknown key in a group": ["model.hiden=3"],
    "unknown group": ["modle=mlp"],
    "unknown choice": ["model=transformer"],
    "unknown experiment": ["experiment=nope"],
    "not an override": ["workers"],
    "unknown flag": ["--sweep"],
    "several values without -m": ["workers=1,2"],
    "one bad job in a sweep": ["-m", "workers=1,2,0"],
    "unknown choice in a sweep": ["-m", "model=mlp,transformer"],
    "unknown key in a sweep": ["-m", "workers=1,2", "wrokers=3"],
    "no such file": ["data=arrays", "data.size=200", "data.path=nowhere.npz"],
    "a model that can't be imported": ["model=custom", "model.builder=nowhere:build"],
    "no data set at all": ["data=null"],
    "a sweep that Hydra's sweeper can't make": ["-m", "workers=interval(1,3)"],
    "a key of another choice": ["data.test_size=5"],
    "no GPU here": ["device=cuda", "strategy=ddp"],
    "a builder that isn't one": ["model=custom", "model.builder=.mod:f"],
    "a size beyond memory": ["data=synthetic", "data.size=100000000000000"],
    "no samples for the baseline": ["data.scope=per_worker", "data.size=100", "batch.scope=global", "batch.size=128"],
    "a model for images, other data": ["model=cnn", "data=synthetic", "data.shape=[5]"],
}


@pytest.mark.parametrize("arguments", BAD.values(), ids=BAD.keys())
def test_a_mistake_gets_one_line_and_no_result(dpexp, tmp_path, arguments):
    import numpy as np

    arrays = tmp_path / "arrays.npz"
    np.savez(
        arrays,
        train_inputs=np.zeros((150, 2), np.float32),
        train_labels=np.arange(150) % 2,
        test_inputs=np.zeros((10, 2), np.float32),
        test_labels=np.arange(10) % 2,
    )
    outcome = dpexp(*[argument.replace("ARRAYS", str(arrays)) for argument in arguments])
    assert outcome.status == 2
    assert outcome.out == ""
    assert outcome.err.startswith("dpexp: ")
    assert outcome.err.count("\n") == 1
    assert not list(tmp_path.rglob("result*"))


@pytest.mark.parametrize("multirun", [[], ["-m"]], ids=["run", "sweep"])
def test_an_unwritable_output_folder_is_named(dpexp, tmp_path, multirun):
    (tmp_path / "out").write_text("a file where the folder should go")
    outcome = dpexp(*multirun, *TINY)
    assert outcome.status == 1
    assert outcome.err.count("\n") == 1
    assert str(tmp_path / "out") in outcome.err


def test_a_misspelt_key_gets_a_suggestion(dpexp):
    assert "did you mean workers?" in dpexp("wrokers=2").err


def test_a_key_of_another_choice_is_placed(dpexp):
    assert "it belongs to data=synthetic" in dpexp("data.test_size=5").err


def test_a_damaged_packaged_file_is_one_line_and_status_2(dpexp, tmp_path, monkeypatch):
    from dpexp.data import packaged

    monkeypatch.setenv("DPEXP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(packaged.SHA256, "train-images-idx3-ubyte", "0" * 64)
    outcome = dpexp("data.size=200")
    assert outcome.status == 2
    assert outcome.err.count("\n") == 1
    assert "is damaged" in outcome.err
    assert not list((tmp_path / "out").rglob("result*"))


def test_a_missing_argument_of_a_model_is_told_how_to_be_added(dpexp):
    outcome = dpexp("model=custom", "model.builder=a:b", "model.arguments={depth:2}")
    assert "model.arguments: has no depth; add it by +model.arguments.depth=..." in outcome.err


def test_an_unknown_choice_gets_the_choices(dpexp):
    assert "choose from cnn, custom, mlp, resnet18" in dpexp("model=transformer").err


def test_a_bad_job_of_a_sweep_is_found_before_the_first_runs(dpexp, tmp_path):
    outcome = dpexp("-m", "workers=1,2,0")
    assert "in the job workers=0" in outcome.err
    assert not (tmp_path / "out").exists()


def test_help_names_knobs_groups_and_examples(dpexp):
    outcome = dpexp("--help")
    assert outcome.status == 0
    for word in ("workers", "threads_per_worker", "batch.scope", "measurement.repeats"):
        assert word in outcome.out
    assert "strategy: ddp, emulated, sequential, sync_dp" in outcome.out
    assert sum(line.strip().startswith("python -m dpexp") for line in outcome.out.splitlines()) >= 5
