"""Repeated commands that measure the same thing: do their intervals contain the truth, and how wide are they?"""

from __future__ import annotations

import contextlib
import math
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence

import numpy as np
from rich.table import Table

from benchmarks.setup import command, out, shown
from dpexp.analysis.estimate import Estimate
from dpexp.analysis.table_row import Row

STRESSOR = """
import os, random, time
randomly, parent = random.Random({seed}), os.getppid()
while os.getppid() == parent:  # a benchmark that is killed leaves none behind
    until = time.perf_counter() + randomly.uniform(0.2, 3)
    while time.perf_counter() < until:
        pass
    time.sleep(randomly.uniform(0.2, 3))
"""
JOB = ["data.size=20000", "measurement.best_sequential=false"]
SWEEP = ["-m", "workers=1,2,4", "data.size=5000,10000,20000,40000"]
SMALL_IMAGES = ["model=resnet18", "data=synthetic", "data.shape=[3,32,32]"]
SCRIPT = "script.command=torchrun --standalone --nproc-per-node={workers} examples/ddp_train.py --loader-workers 0"


def run(rounds: int) -> None:
    """Print all of it; the numbers of repetitions are multiples of `rounds`."""
    _long_steps()
    _trainings(rounds)
    _sweeps()
    _repeated("A/A: commands with workers=1", [*JOB, "workers=1"], 20 * rounds, truth=1.0)
    _repeated("commands with workers=2", [*JOB, "workers=2"], 8 * rounds)
    script = ["measurement.best_sequential=false", SCRIPT]
    _repeated("a DDP script against itself", [*script, "workers=1", "measurement.max_seconds=30"], 4 * rounds, truth=1)
    _repeated("a DDP script, 2 workers", [*script, "workers=2", "measurement.max_seconds=60"], 4 * rounds)


@contextlib.contextmanager
def _stressor(seed: int | None) -> Iterator[None]:
    """Beside a program that keeps one core busy for 0.2 to 3 s at random, half of the time; None: without."""
    if seed is None:
        yield
        return
    program = subprocess.Popen([sys.executable, "-c", STRESSOR.format(seed=seed)])
    try:
        yield
    finally:
        program.kill()
        program.wait()


def _command(*overrides: str, seed: int | None = None) -> tuple[list[Row], float]:
    with _stressor(seed):
        return command(*overrides)


def _long_steps() -> None:
    """Jobs with steps of some hundred milliseconds: what they cost does not depend on the training's length."""
    for length in (["data.size=2000", "epochs=1"], ["data.size=40000", "epochs=10"]):
        (row,), seconds = command(*SMALL_IMAGES, *length, "workers=2")
        out.print(
            f"resnet18, {' '.join(length)}: {seconds:.0f} s, speedup {shown(row.speedup)}, half-width "
            f"{100 * row.speedup.precision:.1f} %"
        )


def _trainings(rounds: int) -> None:
    """The time of a training as steps tell it, beside whole trainings by the same command."""
    models = {"mlp": ["data.size=40000"], "cnn": ["model=cnn", "data.size=5000"]}
    models["resnet18"] = [*SMALL_IMAGES, "data.size=1000", "epochs=1"]
    for name, job in models.items():
        ratios: list[list[float]] = [[], []]
        for _ in range(rounds):
            (row,), _ = command(*job, "workers=2", "measurement.whole_trainings=always")
            ratios[0].append(row.baseline_overall_seconds / row.baseline_trained_seconds)
            ratios[1].append(row.overall_seconds / row.trained_seconds)
        texts = [f"{statistics.median(one):.3f} ({min(one):.3f} to {max(one):.3f})" for one in ratios]
        out.print(f"{name}: time from steps / of whole trainings: one process {texts[0]}, 2 workers {texts[1]}")


def _repeated(title: str, overrides: list[str], count: int, truth: float | None = None) -> None:
    """How many intervals contain the truth, or the mean of the other commands; every second one beside a stressor."""
    found: dict[bool, list[Row]] = {False: [], True: []}
    took = []
    for number in range(count):
        rows, seconds = _command(*overrides, seed=number if number % 2 else None)
        found[number % 2 == 1].append(rows[0])
        took.append(seconds)
    out.print(f"{title}, {count} in all, {statistics.median(took):.0f} s each:")
    for stressed, rows in found.items():
        where = "beside a stressor" if stressed else "alone"
        overall = [row.overall_speedup for row in rows]
        known = [row.speedup for row in rows if row.speedup != row.overall_speedup]
        out.print(f"  overall, {where}: {_summary(overall, truth)}")
        if len(known) > 1:
            out.print(f"  undisturbed, {where}, known in {len(known)} of {len(rows)}: {_summary(known, truth)}")


def _summary(estimates: Sequence[Estimate], truth: float | None) -> str:
    logs = np.log([estimate.value for estimate in estimates])
    contained = 0
    for at, estimate in enumerate(estimates):
        true = truth if truth is not None else math.exp(np.delete(logs, at).mean())
        contained += estimate.low <= true <= estimate.high
    widths = [100 * estimate.precision for estimate in estimates]
    return (
        f"{contained} of {len(estimates)} contain {truth if truth is not None else 'the mean of the others'}; mean "
        f"{math.exp(logs.mean()):.3f}, spread {100 * logs.std(ddof=1):.1f} %, half-width {np.median(widths):.1f} % "
        f"(median), {max(widths):.1f} % (most)"
    )


def _sweeps() -> None:
    table = Table(box=None)
    for head in ("command", "seconds", "undisturbed, half-width", "most", "overall, half-width", "most"):
        table.add_column(head, justify="left" if head == "command" else "right")
    for name, seed in (("the README's sweep", None), ("the same beside a stressor", 1)):
        rows, seconds = _command(*SWEEP, seed=seed)
        free = [row for row in rows if not row.oversubscribed]
        undisturbed = [100 * row.speedup.precision for row in free]
        overall = [100 * row.overall_speedup.precision for row in free]
        cells = [f"{at(widths):.1f} %" for widths in (undisturbed, overall) for at in (statistics.median, max)]
        table.add_row(name, f"{seconds:.0f}", *cells)
    out.print(table)
