"""Any overrides: each configuration either is one, or gets a one-line error; and what is accepted runs."""

from __future__ import annotations

import contextlib
import io

import pytest
from basics import TINY
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dpexp.cli import app
from dpexp.config.built_in import BuiltInConfig
from dpexp.config.compose import compose
from dpexp.config.yaml_files import config_folder, known_keys
from dpexp.errors import ConfigError

KEYS = sorted(known_keys())
GROUPS = sorted({path.parent.name for path in config_folder().glob("*/*.yaml")} - {"hydra"})
CHOICES = sorted({path.stem for path in config_folder().glob("*/*.yaml")})
ODD = "null true false 0 1 2 3 -1 1.5 1e300 1e-300 nan inf -inf [] [1] [1,2] {} {a:1} '' ' ' a .. / ??? ☃".split(" ")
ODD += ["${seed}", "${nowhere}", "per_worker", "global", "paired", "none", "float64", "linear"]

numbers = st.one_of(st.integers(-5, 100_000), st.integers(), st.floats()).map(str)
words = st.sampled_from([*ODD, *CHOICES])
several = st.lists(numbers, max_size=3).map(lambda own: f"[{','.join(own)}]")
values = st.one_of(words, numbers, st.text(max_size=6), several)
keys = st.one_of(st.sampled_from(KEYS), st.sampled_from(GROUPS), st.text(max_size=5))
overrides = st.one_of(
    st.builds("{}{}={}".format, st.sampled_from(["", "", "", "+", "++", "~"]), keys, values),
    st.builds("{}={}".format, st.sampled_from(GROUPS), st.sampled_from(CHOICES)),
    st.text(max_size=12),
)


@settings(max_examples=500, deadline=None)
@example(["batch.size=null", "batch.size=0\n0"], True)
@example(["model=custom", "model.builder=a:b", "model.arguments.text='a\nb',c"], True)
@given(given_overrides=st.lists(overrides, max_size=4), multirun=st.booleans())
def test_any_overrides_make_a_configuration_or_a_one_line_error(given_overrides, multirun):
    try:
        plan = compose(given_overrides, multirun)
    except ConfigError as error:
        message = str(error)
    else:
        assert plan.jobs
        assert all(isinstance(job.config, BuiltInConfig) for job in plan.jobs)
        assert all(plan.name(job).isprintable() for job in plan.jobs)
        return
    assert message.strip()
    assert "\n" not in message.strip()
    assert "Traceback" not in message


# Values that a tiny job can bear; most make none with the others.
small = {
    "workers": st.integers(0, 4),
    "threads_per_worker": st.integers(0, 2),
    "epochs": st.integers(0, 2),
    "seed": st.sampled_from([-1, 0, 2**32 - 1, 2**32]),
    "dtype": st.sampled_from(["float32", "float64", "float16"]),
    "strategy": st.sampled_from(["sequential", "sync_dp", "emulated", "ddp"]),
    "data.size": st.integers(0, 130),
    "data.scope": st.sampled_from(["global", "per_worker"]),
    "data.classes": st.integers(1, 4),
    "batch.size": st.integers(0, 40),
    "batch.scope": st.sampled_from(["global", "per_worker"]),
    "optimizer": st.sampled_from(["sgd", "adam", "adamw"]),
    "optimizer.lr": st.sampled_from(["0", "0.1", "1e300", "nan"]),
    "optimizer.lr_rule": st.sampled_from(["none", "linear", "sqrt"]),
    "model.hidden": st.sampled_from(["[]", "[3]", "[0]", "[3,2]"]),
    "target_accuracy": st.sampled_from(["null", "0.5", "2"]),
    "measurement.baseline": st.sampled_from(["paired", "none"]),
}


@st.composite
def jobs(draw):
    names = draw(st.lists(st.sampled_from(sorted(small)), max_size=5, unique=True))
    return [f"{name}={str(draw(small[name])).lower()}" for name in names]


@pytest.mark.slow
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chosen=jobs())
def test_what_is_accepted_runs_and_what_is_not_is_explained_in_one_line(tmp_path, chosen):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = app.main([*TINY, "measurement.max_seconds=0.1", *chosen, f"hydra.run.dir={tmp_path}/out"])
    diverged = "diverged: a loss is not a finite number" in err.getvalue()
    assert status == (0 if not err.getvalue() else 1 if diverged else 2)
    if status:
        assert err.getvalue().startswith("dpexp: ")
        assert err.getvalue().count("\n") == 1
    assert bool(out.getvalue()) == (status == 0)
