"""Every YAML composes and validates; every rule has its one-line error."""

from __future__ import annotations

import pytest
from basics import composed
from omegaconf import OmegaConf

from dpexp.config.compose import compose, compose_config, to_config
from dpexp.config.overrides import with_script
from dpexp.config.yaml_files import config_folder
from dpexp.errors import ConfigError

CHOICES = sorted(
    f"{path.parent.name}={path.stem}"
    for path in config_folder().glob("*/*.yaml")
    if path.parent.name not in ("experiment", "hydra")
)
NEEDED = {
    "model=custom": ["model.builder=basics:nothing"],
    "data=arrays": ["data.size=1000", "data.path=x.npz"],
}


def test_the_default_is_the_notebooks_model_on_mnist():
    config = composed()
    assert (config.model.name, config.model.hidden, config.data.name) == ("mlp", (256,), "mnist")
    assert (config.optimizer.name, config.optimizer.lr, config.epochs, config.batch.size) == ("sgd", 0.01, 2, 64)
    assert config.strategy.name == "sync_dp"


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_of_every_group_composes(choice):
    composed(choice, *NEEDED.get(choice, []))


@pytest.mark.parametrize("path", sorted(config_folder().glob("experiment/*.yaml")), ids=lambda path: path.stem)
def test_every_job_of_every_experiment_composes(path):
    plan = compose([f"experiment={path.stem}"], multirun=False)
    assert plan.sweep
    assert len({job.config.workers for job in plan.jobs}) >= 2


@pytest.mark.parametrize("script", [[], ["script.command='x {workers}'"]])
@pytest.mark.parametrize(
    ("cores", "typed", "splits"),
    [
        (8, [], [(1, 8), (2, 4), (4, 2), (8, 1)]),
        (6, [], [(1, 6), (2, 3), (3, 2), (6, 1)]),
        (1, [], [(1, 1)]),
        (8, ["workers=2,3"], [(2, 4), (3, 2)]),
    ],
)
def test_every_split_of_the_cores_is_a_job(monkeypatch, cores, typed, splits, script):
    monkeypatch.setattr("dpexp.config.compose.usable_cores", lambda: cores)
    jobs = [job.config for job in compose(["experiment=cores", *typed, *script], multirun=True).jobs]
    assert [(job.workers, job.threads_per_worker) for job in jobs] == splits


@pytest.mark.parametrize(
    ("overrides", "local", "total", "updates"),
    [
        (["workers=4"], 64, 256, 2 * 40),
        (["workers=4", "batch.scope=global"], 16, 64, 2 * 157),
        (["workers=4", "data.scope=per_worker"], 64, 256, 2 * 157),
    ],
)
def test_scopes_give_batch_sizes_and_updates(overrides, local, total, updates):
    config = composed("data.size=10000", *overrides)
    assert (config.local_batch_size, config.global_batch_size, config.updates) == (local, total, updates)


def test_the_baseline_is_the_same_job_for_one_sequential_worker():
    baseline = composed("workers=4", "threads_per_worker=2").baseline()
    assert (baseline.workers, baseline.strategy.name, baseline.threads_per_worker) == (1, "sequential", 2)
    assert baseline.global_batch_size == 64


def test_choosing_sequential_brings_its_one_worker():
    assert composed("strategy=sequential").workers == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["workers=0"], "workers=0: must be greater than 0"),
        (["workers=-1"], "workers=-1: must be greater than 0"),
        (["workers=1.5"], "workers=1.5: must be a whole number"),
        (["workers=two"], "workers=two: must be a whole number"),
        (["workers=true"], "workers=true: must be a whole number"),
        (["workers=null"], "workers=null: must be a whole number"),
        (["epochs=0"], "epochs=0: must be greater than 0"),
        (["seed=-1"], "seed=-1: must be greater than or equal to 0"),
        (["optimizer.lr=.nan"], "optimizer.lr"),
        (["batch.scope=all"], "batch.scope=all: must be 'per_worker' or 'global'"),
        (["dtype=float16"], "dtype=float16: must be 'float32' or 'float64'"),
        (["model.hidden=[0]"], "model.hidden[0]=0: must be greater than 0"),
        (["data.size=60001"], "data.size=60001: mnist has 60,000 training samples; choose 1 to 60,000"),
        (["data.size=30001", "data.scope=per_worker"], "data.size=30001 x workers=2 = 60,002"),
        (["data=cifar10", "data.size=50001"], "cifar10 has 50,000 training samples"),
        (
            ["data.size=100", "workers=2"],
            "batch.size=64 x workers=2 is a global batch of 128 samples, more than the 100",
        ),
        (["strategy=sequential", "workers=2"], "choose strategy=sync_dp, ddp or emulated"),
        (["batch.scope=global", "workers=3"], "choose a multiple of 3, such as 63 or 66"),
        (["batch.scope=global", "batch.size=2", "workers=4"], "choose a multiple of 4, such as 4"),
        (
            ["data.scope=per_worker", "data.size=100", "workers=4", "batch.scope=global", "batch.size=256"],
            "batch.size=256 is more than data.size=100",
        ),
        (["optimizer.nesterov=true"], "needs optimizer.momentum > 0"),
        (["optimizer=adam", "optimizer.betas=[0.9,1]"], "optimizer.betas[1]=1: must be less than 1"),
        (["+surprise=1"], "surprise: no such key"),
        (["+model.surprise=1"], "model.surprise: no such key"),
        (["model=custom"], "model.builder: no default; set it, as in model.builder=mine:build"),
        (["model=custom", "model.builder=no colon"], "model.builder=no colon"),
        (["strategy=ddp", "strategy.find_unused_parameters=maybe"], "strategy.find_unused_parameters=maybe: must be"),
        (["measurement.baseline=best"], "must be 'paired' or 'none'"),
    ],
)
def test_a_bad_value_is_named_with_its_rule(overrides, message):
    with pytest.raises(ConfigError) as caught:
        composed(*overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_config_without_a_value_is_refused():
    with pytest.raises(ConfigError, match="workers: no value"):
        to_config(OmegaConf.create({}), [])


@pytest.mark.parametrize(
    "words",
    [
        ["torchrun", "--nproc-per-node={workers}", "train.py", "--help", "a,b", "x=${{HOME}}", "it's", "", "{{}}"],
        ["my program"],
        ["'quoted'", '"too"'],
    ],
)
def test_a_command_after_two_dashes_keeps_its_words(words):
    arguments = with_script(["workers=1", "batch.size=8", "--", *words])
    expected = [word.replace("{workers}", "1").replace("{{", "{").replace("}}", "}") for word in words]
    assert compose_config(*arguments).command_words == expected


def test_a_backslash_of_a_command_stays_one():
    given = r"script.command=python my\ script.py --workers {workers}"
    config = compose_config("workers=1", given)
    assert config.command_words == ["python", "my script.py", "--workers", "1"]


HYDRAS = "hydra.job.chdir=true +hydra.job.env_set.A=b hydra/launcher=basic hydra.sweeper=null hydra.sweep.subdir=x"


@pytest.mark.parametrize("setting", HYDRAS.split())
def test_settings_for_jobs_that_hydra_would_start_are_refused(setting):
    for multirun in (False, True):
        with pytest.raises(ConfigError, match="leave it out; dpexp starts its jobs itself, one after another"):
            compose([setting], multirun=multirun)


def test_choices_can_be_swept_by_a_pattern():
    plan = compose(["optimizer=glob(adam*)"], multirun=True)
    assert [job.config.optimizer.name for job in plan.jobs] == ["adam", "adamw"]


def test_values_that_are_no_plain_words_can_be_swept():
    plan = compose(["data=arrays", "data.size=1000", "data.path=a.npz,café.npz"], multirun=True)
    assert [job.config.data.path.rpartition("/")[2] for job in plan.jobs] == ["a.npz", "café.npz"]


def test_a_folder_of_ones_own_may_have_local_settings(tmp_path):
    assert compose([], False, str(tmp_path)).jobs[0].config.threads_per_worker == 1
    (tmp_path / "local").mkdir()
    (tmp_path / "local/default.yaml").write_text("threads_per_worker: 3\n")
    assert compose([], False, str(tmp_path)).jobs[0].config.threads_per_worker == 3
    assert compose(["threads_per_worker=2"], False, str(tmp_path)).jobs[0].config.threads_per_worker == 2
