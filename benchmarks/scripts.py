"""Are scripts measured as well as dpexp's own trainings, and does measuring leave them as they are?"""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys

from rich.table import Table

from benchmarks import cases
from benchmarks.setup import command, out, progress, shown
from dpexp.analysis.estimate import geometric_mean
from dpexp.analysis.table_row import PHASE_COLUMNS
from dpexp.report.sentences import largest_loss

PEER = "testbed/delayed_script.py"
LAUNCHED = f"torchrun --standalone --nproc-per-node={{workers}} {PEER}"
JOB = ["measurement.best_sequential=false", "measurement.max_seconds=30"]
EXAMPLES = {
    "torchrun + DDP + DataLoader": ("torchrun --standalone --nproc-per-node={workers} examples/ddp_train.py", 64),
    "Lightning": ("python examples/lightning_train.py --devices {workers}", 64),
    "Accelerate, 2 x 32, bf16": ("torchrun --standalone --nproc-per-node={workers} examples/accelerate_train.py", 64),
    "FSDP2": ("torchrun --standalone --nproc-per-node={workers} examples/fsdp2_train.py", 16),
}


def run(rounds: int) -> None:
    """Print all of it; the numbers of repetitions are multiples of `rounds`."""
    cases.run()
    _examples(rounds)
    _hooks(2 * rounds)
    _like_ddp(rounds)
    _against_itself(2 * rounds)


def _examples(rounds: int) -> None:
    table = Table(box=None)
    for head in (
        "2 workers, milliseconds of a step",
        "overall speedup",
        "step",
        *PHASE_COLUMNS["phases"],
        "largest loss",
    ):
        table.add_column(head, justify="left" if "workers" in head or "loss" in head else "right")
    for name, (text, batch) in EXAMPLES.items():
        progress.print(name)
        (row,), _ = command(
            *JOB, f"script.command={text}", f"batch.size={batch}", f"measurement.max_seconds={15 * rounds}"
        )
        share, what, _ = largest_loss(row)
        total = sum(row.phases.values())
        shares = (row.phases.get(phase, math.nan) / total for phase in PHASE_COLUMNS["phases"])
        times = [f"{1e3 * row.step_seconds * one:.2f}" for one in (1.0, *shares)]
        table.add_row(name, shown(row.overall_speedup), *times, f"{100 * share:.0f} % to {what}" if what else "-")
    out.print(table)
    out.print()


def _hooks(processes: int) -> None:
    """The same steps with dpexp's clock and without, in windows of some milliseconds."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    probe = [sys.executable, "-m", "benchmarks.hook_probe"]
    runs = [subprocess.run(probe, env=environment, capture_output=True, check=True) for _ in range(processes)]
    ratio = geometric_mean([float(run.stdout) for run in runs])
    out.print(f"time of a step, with the clock / without, {processes} processes: {shown(ratio, 4)}")


def _like_ddp(rounds: int) -> None:
    """The same model by strategy=ddp and as a script, in turn."""
    blocks = ["measurement.best_sequential=false", f"measurement.max_seconds={15 * rounds}"]
    (ours,), _ = command("strategy=ddp", "data.size=20000", *blocks)
    (theirs,), _ = command(*JOB, f"script.command={LAUNCHED}", f"script.baseline_command=python {PEER}", *blocks)
    out.print(f"2 workers, speedup by strategy=ddp {shown(ours.speedup)}, as a script {shown(theirs.speedup)}")


def _against_itself(commands: int) -> None:
    """One process of a script against the same."""
    found = [command(*JOB, f"script.command=python {PEER}", "workers=1")[0][0].speedup for _ in range(commands)]
    held = sum(one.low <= 1 <= one.high for one in found)
    precision = statistics.median(one.precision for one in found)
    out.print(
        f"a script against itself: the interval holds 1 in {held} of {commands}; half-width {100 * precision:.1f} %"
    )
