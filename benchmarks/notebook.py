"""The claim that dpexp grew from, "3.2x faster with 2 workers" at 5,000 samples in one process, re-enacted."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile

from rich.table import Table

from benchmarks import peers
from benchmarks.setup import out

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
    repeated = found["repeated"]
    out.print(
        f"\nthe cell {SIZES[0]:,} x 1 again, in the same process: {', '.join(f'{one:.2f}' for one, _ in repeated)} s"
    )
    out.print(f"the cell {SIZES[0]:,} x 2 again: {', '.join(f'{two:.2f}' for _, two in repeated)} s")
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
    answer = [line for line in finished.stdout.splitlines() if not line.startswith("job ")]
    out.print("\n".join("\n".join(answer).split("\n\n")[:2]))  # the first lines, and the table


def _list(numbers: list[int]) -> str:
    return ",".join(map(str, numbers))
