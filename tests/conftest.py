"""Fixtures: a data cache of the tests' own, the command line in this process; and what makes tests fast."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from basics import Outcome, two_hosts
from omegaconf import omegaconf
from programs import shorten_turns

from dpexp.cli import app
from dpexp.processes import fork_server

os.environ["DPEXP_LOCK"] = ""  # tests run side by side
# Thousands of processes are forked from some that have imported torch: the fewer pages these have, the sooner.
os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"


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
def undrawn_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports lay out their figures, but draw them only where they are looked at: in tests marked `drawn`."""
    if request.node.get_closest_marker("drawn") is None:
        monkeypatch.setattr("dpexp.report.figures._write", write_undrawn)


def write_undrawn(figure: object, path: Path) -> Path:
    """In the place of the function that draws a figure as PNG and SVG."""
    path.with_suffix(".svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    path.with_suffix(".png").write_bytes(b"")
    return path.with_suffix(".png")


@pytest.fixture
def link() -> Iterator[None]:
    with two_hosts():
        yield


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
