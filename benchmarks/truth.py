"""Are the answers right and precise? Whole commands, repeated, half of them beside a program that disturbs them."""

from __future__ import annotations

import contextlib
import math
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
from rich.table import Table

from benchmarks.setup import command, configured, out, prepared, shown
from dpexp.analysis.intervals import geometric_mean, paired_ratio
from dpexp.analysis.row import Row
from dpexp.analysis.speedup import calm_seconds, ratio_of_times
from dpexp.calibrate.bench import Arm, Bench
from dpexp.calibrate.faults import Fault
from dpexp.data.dataset import load
from dpexp.launchers.local import CANDIDATE, LocalLauncher
from dpexp.measurement.loop_trainer import recorded
from dpexp.results.schema import Training

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


def run(rounds: int) -> None:
    """Print all of it; the numbers of repetitions are multiples of `rounds`."""
    _repeated("A/A: commands with workers=1", ["workers=1"], 20 * rounds, truth=1.0)
    _repeated("commands with workers=2", ["workers=2"], 8 * rounds, truth=None)
    for stressed in (False, True):
        _in_one_piece_and_in_turns(rounds, stressed)
    _sweeps()
    _slower(2 * rounds)


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


def _repeated(title: str, overrides: list[str], count: int, truth: float | None) -> None:
    """How many intervals hold the truth, or the mean of the other commands."""
    found: dict[bool, list[Row]] = {False: [], True: []}
    for number in range(count):
        rows, _ = _command(*JOB, *overrides, seed=number if number % 2 else None)
        found[number % 2 == 1].append(rows[0])
    every = [*found[False], *found[True]]
    held = sum(row.speedup.low <= (truth or _mean_of_others(every, row)) <= row.speedup.high for row in every)
    target = f"1 in {held}" if truth else f"the mean of the other settled ones in {held}"
    out.print(f"{title}, every second one beside a stressor: the interval holds {target} of {count}")
    for stressed, rows in found.items():
        estimates = [row.speedup for row in rows if not row.is_unsettled]
        if len(estimates) < 2:
            continue
        precision = np.median([estimate.precision for estimate in estimates])
        spread = np.std(np.log([estimate.value for estimate in estimates]), ddof=1)
        out.print(
            f"  {'beside a stressor' if stressed else 'alone'}: {len(estimates)} of {len(rows)} settled, mean "
            f"{math.exp(np.log([estimate.value for estimate in estimates]).mean()):.3f}, half-width "
            f"{100 * precision:.1f} % (median), spread between commands {100 * spread:.1f} %"
        )
        if truth is None:
            each = " ".join(f"{row.speedup.value:.3f}{'?' if row.is_unsettled else ''}" for row in rows)
            out.print(f"    each (unsettled ones with ?): {each}")


def _mean_of_others(every: list[Row], row: Row) -> float:
    return math.exp(np.mean([math.log(one.speedup.value) for one in every if one is not row and not one.is_unsettled]))


def _in_one_piece_and_in_turns(rounds: int, stressed: bool) -> None:
    """The same two trainings as whole runs one after the other, and in turns, for as long."""
    launcher, config = LocalLauncher(), configured("workers=2", *JOB, "epochs=2")
    dataset = load(config)
    work, baseline = prepared(config, dataset), prepared(config.baseline(), dataset)
    one_piece: list[tuple[Training, Training]] = []
    in_turns: list[tuple[Training, Training]] = []
    with _stressor(0 if stressed else None):
        for _ in range(rounds):
            for pairs in (one_piece, in_turns):
                until = time.monotonic() + 2.0
                while time.monotonic() < until:
                    if pairs is one_piece:
                        reports = {"baseline": launcher.run(baseline), CANDIDATE: launcher.run(work)}
                    else:
                        reports = launcher.run_in_turns({"baseline": baseline, CANDIDATE: work}, lambda done: None)
                    pairs.append((recorded(baseline, reports["baseline"]), recorded(work, reports[CANDIDATE])))
    where = "beside a stressor" if stressed else "alone"
    seconds = [[training.seconds for training in side] for side in zip(*one_piece, strict=True)]
    old, new = paired_ratio(seconds[0], seconds[1]), ratio_of_times(in_turns)
    out.print(
        f"2 workers in {2 * rounds} s {where}: in one piece {shown(old, 3)}, in turns {shown(new, 3)}; "
        f"half-width {100 * old.precision:.1f} % and {100 * new.precision:.1f} %"
    )
    for name, whole, side in zip(("sequential", "2 workers"), seconds, zip(*in_turns, strict=True), strict=True):
        turns = geometric_mean(calm_seconds(side)).value
        out.print(f"  {name}: time in turns / in one piece (median) {turns / float(np.median(whole)):.3f}")


def _sweeps() -> None:
    table = Table(box=None)
    for head in ("command", "seconds", "widest interval of rows without oversubscription"):
        table.add_column(head, justify="left" if head == "command" else "right")
    for name, overrides, seed in (
        ("the README's sweep", SWEEP, None),
        ("the README's sweep beside a stressor", SWEEP, 1),
        ("experiment=quick", ["experiment=quick"], None),
    ):
        rows, seconds = _command(*overrides, seed=seed)
        widest = max(row.speedup.precision for row in rows if not row.oversubscribed)
        table.add_row(name, f"{seconds:.0f}", f"+- {100 * widest:.1f} %")
    out.print(table)


def _slower(tries: int) -> None:
    """How often a candidate that is 2 % slower is told from its control."""
    bench, seen = Bench(), 0
    sequential = bench.config("strategy=sequential", "workers=1")
    for _ in range(tries):
        ratio = bench.ratio(Arm(sequential, Fault(slowdown=1.02)), Arm(sequential, Fault(slowdown=1.0)), 12)
        seen += ratio.low > 1
    out.print(f"2 % slower: seen in {seen} of {tries} tries of 12 blocks")
