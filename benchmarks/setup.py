"""What all parts of the benchmark share: the job, composed as the command line would, rounds, and printing."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from dpexp.analysis.estimate import Estimate, geometric_mean
from dpexp.analysis.table import aggregate
from dpexp.analysis.table_row import Row
from dpexp.config.built_in import BuiltInConfig
from dpexp.config.compose import compose_config
from dpexp.launchers.local import LocalLauncher
from dpexp.measurement.built_in_trainer import summarize_training
from dpexp.processes import fork_server, launch
from dpexp.processes.world import WorldSpec
from dpexp.train import worker
from dpexp.train.data.dataset import Dataset
from dpexp.train.models.initial_state import initial_state

SAMPLES, EPOCHS, BATCH = 40_000, 1, 64
TORCHRUN = "torchrun --standalone --nproc-per-node={workers}"
PLAIN = Path(__file__).parent / "plain_peer.py"
Contestant = Callable[[], float]

out = Console(width=120, highlight=False, markup=False, soft_wrap=True)
progress = Console(stderr=True, soft_wrap=True)


def configured(*overrides: str) -> BuiltInConfig:
    """A composed job, of the benchmark's size unless overridden."""
    own = [f"data.size={SAMPLES}", f"epochs={EPOCHS}", f"batch.size={BATCH}", *overrides]
    config = compose_config(*own)
    assert isinstance(config, BuiltInConfig)
    return config


def prepared(config: BuiltInConfig, dataset: Dataset) -> worker.TrainingSpec:
    """What the workers of one training are told."""
    return worker.TrainingSpec(config, dataset, initial_state(config, dataset))


def of_dpexp(dataset: Dataset, *overrides: str) -> Contestant:
    """One training by dpexp; the slowest worker's seconds."""
    spec = prepared(configured(*overrides), dataset)
    return lambda: summarize_training(spec, LocalLauncher().run(spec)).seconds


def slowest(target: fork_server.Target, arguments: list[tuple[Any, ...]]) -> float:
    """Run `target` in a group of processes; the most seconds that one reports."""
    return float(max(launch.launch(WorldSpec(target, arguments))))


def interleaved(contestants: Mapping[str, Contestant], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contestant by round, the first round discarded; the order alternates."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        names = list(contestants)[:: 1 if number % 2 == 0 else -1]
        for name in names:
            progress.print(f"round {number} of {rounds}: {name}")
            seconds[name].append(contestants[name]())
    return {name: values[1:] for name, values in seconds.items()}


def paired_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Estimate:
    """The geometric mean of the ratios of rounds, with its interval."""
    return geometric_mean([first / second for first, second in zip(numerators, denominators, strict=True)])


def command(*overrides: str, folder: Path | None = None, where: Path | None = None) -> tuple[list[Row], float]:
    """The rows of one command of a fresh process, and its seconds; its results are kept in `folder`, if given."""
    with tempfile.TemporaryDirectory() as temporary:
        kept = folder or Path(temporary)
        started = time.monotonic()
        run = dpexp(*overrides, folder=kept, where=where)
        if run.returncode:
            raise RuntimeError(f"{' '.join(overrides)}: {run.stderr}")
        return aggregate([kept]).measured, time.monotonic() - started


def dpexp(*overrides: str, folder: Path, where: Path | None = None) -> subprocess.CompletedProcess[str]:
    """One command of a fresh process, `where` it is to run, whether it succeeds or not."""
    words = [sys.executable, "-m", "dpexp", *overrides, f"hydra.run.dir={folder}", f"hydra.sweep.dir={folder}"]
    return subprocess.run(words, cwd=where, capture_output=True, text=True, check=False)


def plain_rate(program: str, batch: int, processes: int, launch: str = TORCHRUN, where: Path | None = None) -> float:
    """Samples a second of a script's program without dpexp; `batch` is of each process."""
    words = f"{launch} {PLAIN} {program}".format(workers=processes, local_batch_size=batch).split()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PATH": path}
    run = subprocess.run(words, cwd=where, env=environment, capture_output=True, text=True, check=False)
    found = re.search(r"(\S+) steps a second", run.stdout)
    if found is None:
        raise RuntimeError(f"{' '.join(words)}: {run.stderr}")
    return float(found[1]) * batch * processes


def shown(estimate: Estimate, digits: int = 2, unit: float = 1.0) -> str:
    """A value and its 95 % interval, if it has one, divided by `unit`."""
    value, low, high = (f"{x / unit:.{digits}f}" for x in (estimate.value, estimate.low, estimate.high))
    return value if math.isnan(estimate.low) else f"{value} ({low} to {high})"
