"""The command line: one line for each mistake, help that helps, exit statuses."""

from __future__ import annotations

import argparse

import pytest
from basics import TINY
from hydra._internal.utils import get_args_parser

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
    assert "it exists only with data=synthetic" in dpexp("data.test_size=5").err


def test_a_damaged_packaged_file_is_one_line_and_status_2(dpexp, tmp_path, monkeypatch):
    from dpexp.train.data import sources

    monkeypatch.setattr(sources, "_decoded", sources._decoded.__wrapped__)  # whatever this process has decoded before
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "train-images-idx3-ubyte.xz").write_bytes(b"not xz at all")
    monkeypatch.setattr(sources.resources, "files", lambda _: tmp_path)
    outcome = dpexp("data.size=200")
    assert outcome.status == 2
    assert outcome.err.count("\n") == 1
    assert "is damaged" in outcome.err
    assert not list((tmp_path / "out").rglob("result*"))


def test_a_folder_in_which_nothing_was_measured_takes_the_corrected_command(dpexp):
    assert dpexp(*TINY, "data=arrays", "data.path=nothing.npz").status == 2
    assert dpexp(*TINY).status == 0


ANSWERS = {
    "nothing": ([""], "write key=value, such as workers=2"),
    "no value": (["workers"], "'workers': write key=value"),
    "spaces in words": (["workers", "=", "2"], "'workers': write key=value, such as workers=2"),
    "a comma too many": (["-m", "workers=1,"], "workers=1,: must be a whole number"),
    "a control character": (["seed=\x01"], 'seed="\\u0001": must be a whole number'),
    "flags between": (["a=1", "-m", "b=2"], "a: no such key"),
    "lr": (["lr=0.1"], "did you mean optimizer.lr?"),
    "repeats": (["repeats=3"], "did you mean measurement.repeats?"),
    "a misspelt group": (["modle=cnn"], "did you mean model"),
    "hidden": (["hidden=[3]"], "did you mean model.hidden?"),
    "a number for a list": (["model.hidden=512"], "model.hidden=512: must be a list, such as [1, 2]"),
    "a number for a group": (["batch=128"], "this is a group of settings: batch.scope, batch.size"),
    "a round fraction": (["data.size=1e3"], "must be a whole number; write data.size=1000"),
    "a dot for a colon": (["model=custom", "model.builder=m.Net"], "write module:function, such as mine:build"),
    "a file": (["model=custom", "model.builder=./m.py:Net"], "write module:function, such as mine:build"),
    "no folder": (["hydra.run.dir="], "an empty name would mean the current folder"),
    "two experiments": (["-m", "experiment=quick,weak_scaling"], "each experiment is a sweep; run them one by one"),
    "too many threads": (["threads_per_worker=5000"], "threads_per_worker=5000 on "),
    "too many workers": (
        ["workers=1000", "batch.size=1"],
        "use fewer, or increase launch.max_workers_per_core",
    ),
    "a builder that exits": (
        ["model=custom", "model.builder=user_models:exits"],
        "model.builder=user_models:exits: it called sys.exit(3)",
    ),
    "a model that exits": (["model=custom", "model.builder=user_models:exits_in_forward"], "it called sys.exit(4)"),
    "a model without gradients": (
        ["model=custom", "model.builder=user_models:without_gradients"],
        "logits that don't depend on its parameters",
    ),
    "a model that starts with NaN": (["model=custom", "model.builder=user_models:starts_with_nan"], "NaN or infinite"),
    "Ctrl-C raised by a builder": (
        ["model=custom", "model.builder=user_models:raises_keyboard_interrupt"],
        "KeyboardInterrupt (called with",
    ),
    "a file for a module": (["model=custom", "model.builder=user_models.py:exits"], "write user_models:exits"),
    "two colons": (["model=custom", "model.builder=m:f:x"], "write module:function, such as mine:build"),
    "arguments that are no dictionary": (
        ["model=custom", "model.builder=m:f", "model.arguments=width"],
        "must be names and values, such as {width: 128}",
    ),
    "arguments of another model": (["model.arguments.width=3"], "it exists only with model=custom"),
    "a key below none": (["foo.bar=1"], "foo.bar: no such key"),
    "a part of a name": (["threads=2"], "did you mean threads_per_worker?"),
    "a number for a choice": (["data=5"], "data=5: no such choice; choose from arrays, "),
    "no choice": (["strategy="], "strategy=: no such choice; choose from ddp, "),
    "a choice by its name": (["model.name=cnn"], "model.name=cnn: write model=cnn"),
    "no folder of files": (["--config-dir", "nowhere"], "--config-dir nowhere: no such folder"),
    "a plugin": (["-m", "hydra/sweeper=optuna", "seed=1,2"], "hydra/sweeper: leave it out"),
    "a quoted number": (["data.size='1000'"], "write data.size=1000 without quotes"),
    "half a list": (["model.hidden=[512"], "must be a list, such as [1, 2]"),
    "yes": (["checkpoint=yes"], "must be true or false"),
    "a reference to nothing": (["workers=${nope}"], "workers: Interpolation key 'nope' not found"),
    "a letter from another alphabet": (["w\N{CYRILLIC SMALL LETTER O}rkers=2"], "did you mean workers?"),
    "dashes": (["--workers=2"], "settings have no dashes: workers=2"),
    "no --": (["workers=2", "torchrun", "--standalone", "t.py"], "a script's command follows after --"),
    "a plus": (["+workers=3"], "already at 'workers'. Either remove + prefix: 'workers=3'"),
    "a sweep of nothing": (["-m", "workers=range(1,0)"], "this sweep has no jobs"),
    "a long value": (["workers=" + "[" * 500], "workers=...: must be a whole number"),
    "too few values": (["optimizer=adam", "optimizer.betas=[0.9]"], "optimizer.betas[1]: no value"),
    "too many values": (["optimizer=adam", "optimizer.betas=[0.9,0.9,0.9]"], "must have at most 2 items"),
    "nobody's home": (["data=arrays", "data.size=1000", "data.path=~no_such_user/x.npz"], "No such file"),
    "lazy layers": (["model=custom", "model.builder=user_models:lazy"], "lazy layers"),
    "all frozen": (["model=custom", "model.builder=user_models:frozen"], "or is it frozen?"),
}


@pytest.mark.parametrize("arguments", ANSWERS)
def test_a_wrong_input_gets_an_answer_that_helps(dpexp, tmp_path, arguments):
    given, answer = ANSWERS[arguments]
    outcome = dpexp(*given)
    assert (outcome.status, outcome.err.count("\n")) == (2, 1)
    assert answer in outcome.err
    assert not list(tmp_path.rglob("result*"))


USERS_FILES = {
    "an unknown key": (
        "experiment",
        "# @package _global_\nworkrs: 3\n",
        "workrs: no such key; did you mean workers? (with ",
    ),
    "a wrong value": (
        "experiment",
        "# @package _global_\nworkers: two\n",
        "workers=two: must be a whole number (with ",
    ),
    "an unknown key of a group": ("model", "name: cnn\nhiden: 3\nchannels: [2]\n", "did you mean model.hidden"),
    "no package": ("experiment", "workers: 3\n", "its file must begin with the line  # @package _global_"),
}


@pytest.mark.parametrize("mistake", USERS_FILES)
def test_a_mistake_in_a_users_yaml_names_the_file(dpexp, tmp_path, mistake):
    group, text, answer = USERS_FILES[mistake]
    path = tmp_path / "mine" / group / "mine.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    outcome = dpexp("--config-dir", str(tmp_path / "mine"), f"{group}=mine")
    assert (outcome.status, outcome.err.count("\n")) == (2, 1)
    assert answer in outcome.err
    assert str(path) in outcome.err


def test_the_version_is_ours(dpexp):
    import dpexp as package

    assert dpexp("--version").out == f"dpexp {package.__version__}\n"


def tiny_custom(*overrides):
    return [text for text in TINY if not text.startswith("model.")] + ["model=custom", *overrides]


def test_a_models_arguments_need_no_plus(dpexp):
    assert dpexp(*tiny_custom("model.builder=user_models:own_model", "model.arguments.width=5")).status == 0


def test_spaces_around_the_sign_do_no_harm(dpexp):
    assert dpexp(*TINY, "workers = 1").status == 0


@pytest.mark.parametrize("path", ["~/arrays ü.npz", "arrays ü.npz"])
def test_data_below_the_home_folder_or_in_the_starting_folder_is_found(dpexp, tmp_path, monkeypatch, path):
    import numpy as np

    inputs, labels = np.zeros((150, 2), np.float32), np.arange(150) % 2
    arrays = {"train_inputs": inputs, "train_labels": labels, "test_inputs": inputs, "test_labels": labels}
    np.savez(tmp_path / "arrays ü.npz", **arrays)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    others = [text for text in TINY if not text.startswith("data")]
    settings = ["data=arrays", "data.size=101", f"data.path={path}"]
    assert dpexp(*others, *settings).status == 0


def test_a_configuration_is_shown_without_running_it(dpexp):
    assert "workers: 3" in dpexp("--cfg", "job", "workers=3").out


def test_no_command_needs_hydras_help_which_python_3_14_refuses(dpexp, monkeypatch):
    """As its argparse does: a text is looked for in the help, which Hydra 1.3.8 gives as an object for one flag."""
    add = argparse._ActionsContainer.add_argument

    def add_and_check(container, *names, **options):
        if options.get("help"):
            try:
                assert "%" not in options["help"]
            except TypeError as error:
                raise ValueError("badly formed help string") from error
        return add(container, *names, **options)

    monkeypatch.setattr(argparse._ActionsContainer, "add_argument", add_and_check)
    with pytest.raises(ValueError, match="badly formed help string"):
        get_args_parser()
    assert "dpexp: how well does" in dpexp("--help").out
    assert "workers: 3" in dpexp("--cfg", "job", "workers=3").out
    assert dpexp("workers=0").err == "dpexp: workers=0: must be greater than 0\n"


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
