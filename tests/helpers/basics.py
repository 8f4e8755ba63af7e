"""What most tests use: tiny jobs, paths, two hosts, and waiting."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dpexp.config.built_in import BuiltInConfig
from dpexp.config.compose import compose_config
from testbed.namespaces import linked

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "tests" / "helpers" / "scripts"
PYTHONPATH = f"{ROOT}:{ROOT}/tests/helpers"  # this dpexp, whichever is installed, and what tests share

# Small enough for milliseconds, odd enough to hit every uneven split: 4 batches of 24, then one of 5. A job measures
# one block, of few rounds; tests that want whole trainings, too, ask for them.
TINY = (
    "data=synthetic data.size=101 data.test_size=40 data.shape=[1,4,4] data.classes=3 model.hidden=[7] "
    "batch.size=24 batch.scope=global dtype=float64 measurement.repeats=1 "
    "measurement.warmup_steps=2 measurement.best_sequential=false measurement.precision=null "
    "measurement.max_seconds=0.4 measurement.whole_trainings=never"
).split()


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
