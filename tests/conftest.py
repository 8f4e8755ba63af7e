"""What tests share: composed configs, a data cache of their own, and the command line in this process."""

from __future__ import annotations

import contextlib
import copy
import functools
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from omegaconf import omegaconf
from programs import shorten_turns

from dpexp.cli import app
from dpexp.config.built_in import BuiltInConfig
from dpexp.config.compose import compose_config
from dpexp.processes import fork_server
from testbed.namespaces import linked

os.environ["DPEXP_LOCK"] = ""  # tests run side by side
# Thousands of processes are forked from some that have imported torch: the fewer pages these have, the sooner.
os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"

ROOT = Path(__file__).parent.parent
SCRIPTS = ROOT / "tests" / "helpers" / "scripts"
PYTHONPATH = f"{ROOT}:{ROOT}/tests:{ROOT}/tests/helpers"  # this dpexp, whichever is installed, and what tests share

# Small enough for milliseconds, odd enough to hit every uneven split: 4 batches of 24, then one of 5. A job measures
# one block, of few rounds; tests that want whole trainings, too, ask for them.
TINY = (
    "data=synthetic data.size=101 data.test_size=40 data.shape=[1,4,4] data.classes=3 model.hidden=[7] "
    "batch.size=24 batch.scope=global dtype=float64 measurement.repeats=1 "
    "measurement.warmup=0 measurement.warmup_steps=2 measurement.best_sequential=false measurement.precision=null "
    "measurement.max_seconds=0.4 measurement.whole_trainings=never"
).split()


@pytest.fixture(scope="session", autouse=True)
def data_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One cache for the whole run, so that no test touches the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DPEXP_CACHE", str(folder))
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def short_turns() -> None:
    """In this process, and in the programs that tests start."""
    shorten_turns()


@pytest.fixture(scope="session", autouse=True)
def preloaded_fork_server(request: pytest.FixtureRequest) -> None:
    """Ours, before a test starts one that has imported nothing. Unit tests hardly need it.

    It has imported what tests do, too: many targets of workers are theirs.
    """
    fork_server.PRELOAD += ["pytest", "hypothesis", "dpexp.cli.app", "testbed.namespaces"]
    if any("unit" not in item.path.parts for item in request.session.items):
        fork_server.start_server()


@pytest.fixture(scope="session", autouse=True)
def cached_yaml() -> Iterator[None]:
    """Hydra parses the same files for each job."""
    parse, known = omegaconf.yaml.load, {}

    def load(stream: Any, Loader: Any) -> Any:  # noqa: N803
        text = stream if isinstance(stream, str) else stream.read()
        if text not in known:
            known[text] = parse(text, Loader)
        return copy.deepcopy(known[text])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(omegaconf, "yaml", SimpleNamespace(**vars(yaml) | {"load": load}))
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One process begins with the tests that start programs, the other with the rest; quick ones are at both ends.

    Who is done first takes tests from the end of the other's. So hardly any fixture is made in both.
    """

    def place(item: Any) -> int:
        if "unit" in item.path.parts:
            return 1
        names = (getattr(value, "__module__", "") for value in vars(item.module).values())
        if "programs" in names or hasattr(item.module, "programs"):
            return 0
        return 3 if item.path.stem in ("test_cli", "test_data", "test_compare", "test_turns") else 2

    items.sort(key=place)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    import torch  # in the processes that run tests, not in the one that distributes them

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def unpainted_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports lay out their figures, but paint them only where they are looked at: in tests marked `painted`."""
    if request.node.get_closest_marker("painted") is None:
        monkeypatch.setattr("dpexp.report.figures._write", write_unpainted)


def write_unpainted(figure: object, path: Path) -> Path:
    """In the place of the function that paints a figure as PNG and SVG."""
    path.with_suffix(".svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    path.with_suffix(".png").write_bytes(b"")
    return path.with_suffix(".png")


@pytest.fixture
def link() -> Iterator[None]:
    with two_hosts():
        yield


@contextlib.contextmanager
def two_hosts() -> Iterator[None]:
    """Two hosts with a link between them, which are network namespaces of this machine."""
    with contextlib.ExitStack() as hosts:
        try:
            hosts.enter_context(linked(None))
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"network namespaces can't be made here (they need root and iproute2): {error}")
        yield


def composed(*overrides: str) -> BuiltInConfig:
    """Nothing can change it, so tests that ask for the same share it."""
    return _composed(overrides, Path.cwd(), os.environ.get("DPEXP_CACHE"))


@functools.cache
def _composed(overrides: tuple[str, ...], folder: Path, cache: str | None) -> BuiltInConfig:
    """`folder` and `cache` are where data are looked for."""
    return compose_config(*overrides)


def tiny(*overrides: str) -> BuiltInConfig:
    """A tiny job; one that chooses another model doesn't get the MLP's layers."""
    other_model = any(override.startswith("model=") for override in overrides)
    base = [override for override in TINY if not (other_model and override.startswith("model."))]
    return composed(*base, *overrides)


@dataclass(frozen=True)
class Outcome:
    status: int
    out: str
    err: str


@pytest.fixture
def dpexp(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """The command line, writing below `tmp_path / "out"` unless it resumes what lies elsewhere."""

    def run(*arguments: str) -> Outcome:
        folder = tmp_path / "out"
        resumes = any(argument.startswith("resume=") for argument in arguments)
        places = [] if resumes else [f"hydra.run.dir={folder}", f"hydra.sweep.dir={folder}"]
        status = app.main([*arguments, *places])
        captured = capsys.readouterr()
        return Outcome(status, captured.out, captured.err)

    return run


def free_port() -> int:
    """A TCP port that nobody uses now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> bool:
    """Whether the condition held once in that time."""
    deadline = time.monotonic() + seconds
    while not (held := condition()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return held
