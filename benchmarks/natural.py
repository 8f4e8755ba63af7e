"""Trainings whose steps differ by nature, each against the truth: plain runs, in turn with dpexp's commands."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.setup import command, out

FOLDER = Path(__file__).parent / "natures"
PLAIN_SECONDS = 4.0  # of a plain run of one process, about
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Script:
    """A script whose steps differ; `steps` are those of a plain run."""

    name: str
    words: str
    batch: int
    steps: int


SCRIPTS = [
    Script("long batches", "long_batches.py", 16, 2000),
    Script("long batches, together", "long_batches.py --together", 16, 2000),
    Script("validation on rank 0", "pauses.py --pause validation", 64, 3000),
    Script("checkpoints", "pauses.py --pause checkpoint", 64, 3000),
    Script("loaders anew each epoch", "pauses.py --pause loader", 64, 1000),
]


def run(rounds: int) -> None:
    """So many commands of each."""
    for script in SCRIPTS:
        _show(script.name, [_of_script(script) for _ in range(rounds)])
    _show("random depth (own model)", [_of_random_depth() for _ in range(rounds)])


@dataclass(frozen=True)
class Outcome:
    """One command, and the throughputs of plain runs before and after it: of one process, and of two."""

    plain: tuple[float, float]
    here: tuple[float, float, float]
    shown: float
    samples_per_second: float
    tells_spells: bool

    @property
    def truth(self) -> float:
        """The speedup of plain runs."""
        return self.plain[1] / self.plain[0]


def _show(name: str, found: Sequence[Outcome]) -> None:
    held = sum(one.here[1] <= one.truth <= one.here[2] for one in found)
    out.print(f"{name}: the interval as it is holds the truth in {held} of {len(found)}")
    for one in found:
        value, low, high = one.here
        rate, told = one.samples_per_second / one.plain[1], "; spells told" if one.tells_spells else ""
        out.print(
            f"  truth {one.truth:.2f}; as it is {value:.2f} ({low:.2f} to {high:.2f}), shown {one.shown:.2f}; "
            f"samples a second / plain {rate:.2f}{told}"
        )


def _of_script(script: Script) -> Outcome:
    words = f"{FOLDER}/{script.words} --batch {{local_batch_size}}"
    dpexp = [
        "workers=2",
        f"batch.size={script.batch}",
        "measurement.best_sequential=false",
        f"script.command=torchrun --standalone --nproc-per-node={{workers}} {words}",
    ]
    before = _plain(script)
    row = command(*dpexp)[0][0]
    after = _plain(script)
    return _outcome(row, (_mean(before[0], after[0]), _mean(before[1], after[1])))


def _plain(script: Script) -> tuple[float, float]:
    """Samples a second of one process, and of two, started as dpexp starts them: DDP costs one process time, too."""
    words = [*f"{FOLDER}/{script.words} --batch {script.batch}".split(), "--steps", str(script.steps)]
    torchrun = [str(Path(sys.executable).parent / "torchrun"), "--standalone"]
    found = []
    for processes in (1, 2):
        run = subprocess.run(
            [*torchrun, f"--nproc-per-node={processes}", *words],
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            check=True,
        )
        found.append(float(re.findall(r"(\d+) samples a second", run.stdout)[-1]))
    return found[0], found[1]


def _of_random_depth() -> Outcome:
    """The truth of dpexp's own loop: whole trainings in one piece, by the same command."""
    row = command(
        "workers=2",
        "model=custom",
        "model.builder=benchmarks.natures.random_depth:build",
        "data.size=20000",
        "measurement.whole_trainings=always",
        "measurement.best_sequential=false",
    )[0][0]
    one, two = (row.data_size or 0) * (row.epochs or 0) / row.baseline_trained_seconds, 0.0
    two = (row.data_size or 0) * (row.epochs or 0) / row.trained_seconds
    return _outcome(row, (one, two))


def _outcome(row, plain: tuple[float, float]) -> Outcome:  # type: ignore[no-untyped-def]
    here = row.overall_speedup
    told = any(warning.kind == "disturbed" for warning in row.warnings)
    return Outcome(plain, (here.value, here.low, here.high), row.speedup.value, row.samples_per_second, told)


def _mean(first: float, second: float) -> float:
    return math.sqrt(first * second)
