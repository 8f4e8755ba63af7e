"""The claim that dpexp grew from, "3.2x faster with 2 workers" at 5,000 samples in one process, re-enacted."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from dataclasses import replace

from rich.table import Table

from benchmarks import peers
from benchmarks.setup import configured, out
from dpexp.analysis.warnings import warnings
from dpexp.machine import environment
from dpexp.measurement.conditions import Watch
from dpexp.results.schema import Block, Conditions, Training, WorkerTimes

# What the class notebook printed, on Colab: seconds with 1 and with 2 workers.
PRINTED = {5_000: (5.92, 1.87), 10_000: (3.93, 4.19), 20_000: (7.44, 7.19), 40_000: (18.51, 14.37)}
SIZES, WORKERS, AGAIN = [5_000, 10_000, 20_000, 40_000], [1, 2, 4], 4


def run(rounds: int) -> None:
    """Print the notebook's grid from a cold process, what dpexp says of it, and dpexp's own table of the cells."""
    found = json.loads(
        peers.own_process([sys.executable, "-m", "benchmarks.notebook_peer"], *map(json.dumps, (SIZES, WORKERS, AGAIN)))
    )
    out.print("the notebook's program in a cold process, one run a cell, seconds, and its speedup over workers=1\n")
    table = Table(box=None)
    for head in ("samples", *(f"{workers} workers" for workers in WORKERS)):
        table.add_column(head, justify="right")
    for size, seconds in zip(SIZES, found["grid"], strict=True):
        table.add_row(f"{size:,}", *(f"{own:.2f} ({seconds[0] / own:.2f})" for own in seconds))
    out.print(table)
    (first, second, *_), repeated = found["grid"][0], found["repeated"]
    out.print(
        f"\nthe cell {SIZES[0]:,} x 1 again, in the same process: {', '.join(f'{one:.2f}' for one, _ in repeated)} s"
    )
    out.print(f"the cell {SIZES[0]:,} x 2 again: {', '.join(f'{two:.2f}' for _, two in repeated)} s")
    config = configured("strategy=emulated", "workers=2", f"data.size={SIZES[0]}", "epochs=2")
    conditions = Watch().conditions(0.0)
    for whose, pairs in (
        ("these runs of one cell as its blocks, the cold one first", [(first, second), *repeated]),
        (
            f"the times that the notebook printed, each size a block, per {SIZES[0]:,} samples",
            [[seconds * SIZES[0] / size for seconds in both] for size, both in PRINTED.items()],
        ),
    ):
        out.print(f"\nwhat dpexp says of {whose}:")
        for line in warnings(config, environment.describe(), [_block(one, two, conditions) for one, two in pairs]):
            out.print(f"  {line}")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "dpexp", "-m", "strategy=emulated", f"workers={_list(WORKERS)}"]
        command += [
            f"data.size={_list(SIZES)}",
            f"measurement.repeats={max(3, rounds)}",
            "measurement.precision=null",
            "threads_per_worker=2",
        ]
        command += ["measurement.best_sequential=false", f"hydra.sweep.dir={folder}"]
        finished = subprocess.run(command, capture_output=True, text=True, check=True)
    out.print(f"\nthe same cells by dpexp: {' '.join(command[1:-1])}\n")
    out.print("\n".join(line for line in finished.stdout.splitlines() if not line.startswith("wrote ")))


def _block(baseline: float, candidate: float, conditions: Conditions) -> Block:
    plain = Training(
        turn_seconds=[candidate],
        steps=None,
        epoch_losses=[None],
        test_accuracy=None,
        epoch_seconds=[],
        epoch_accuracies=[],
        parameters_sha256="",
        linear_kernel="torch",
        workers=[
            WorkerTimes(  # NaN: it doesn't tell
                rank=0,
                threads=environment.usable_cores(),
                seconds=candidate,
                process_cpu_seconds=math.nan,
                startup_seconds=math.nan,
                warmup_seconds=math.nan,
                evaluation_seconds=math.nan,
                phases={},
            )
        ],
    )
    return Block(
        warmup=False,
        order=["baseline", "candidate"],
        candidate=plain,
        baseline=replace(plain, turn_seconds=[baseline]),
        best_sequential=None,
        independent=None,
        conditions=conditions,
        wall_seconds=baseline + candidate,
    )


def _list(numbers: list[int]) -> str:
    return ",".join(map(str, numbers))
