"""Laws of scaling beside Extra-P and AdaptDL's fit, on the same simulated sweeps; peers in environments of theirs."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.setup import out
from dpexp.analysis.decision.contest import Scaling, contest
from dpexp.analysis.decision.laws import Law, laws
from dpexp.analysis.intervals import Estimate
from dpexp.analysis.row import Row

COUNTS, AT, NOISE = (2, 3, 4, 6, 8, 12, 16, 24, 32), 64.0, 0.02
TRUTHS = {
    "Amdahl's law": [0.04],
    "Gustafson's law": [0.12],
    "the Universal Scalability Law": [0.03, 0.002],
    "the goodput model": [0.2, 0.03, 2.0],
    "the alpha-beta model": [1.05, 0.005, 0.1],
}
PEERS = ("extrap", "adaptdl")


def run(rounds: int) -> None:
    """Predict 64 workers from up to 32, for 4 x `rounds` sweeps of each law."""
    sweeps = {name: [simulated(name, seed) for seed in range(4 * rounds)] for name in TRUTHS}
    peers = _peers({name: [[row.speedup.value for row in rows] for rows in each] for name, each in sweeps.items()})
    table = Table(box=None)
    out.print(f"{AT:.0f} workers predicted from 1 to {COUNTS[-1]}, with {100 * NOISE:.0f} % noise; errors of")
    for head in ("the law behind it", "dpexp", "truth in band", "refused", *PEERS):
        table.add_column(head, justify="left" if head[0] == "t" and head[1] == "h" else "right")
    for name, each in sweeps.items():
        expected = truth(name, [AT])[0]
        found = [contest(rows) for rows in each]
        curves = [scaling.curve([AT])[:, 0] for scaling in found if isinstance(scaling, Scaling)]
        held = sum(low <= expected <= high for _, low, high in curves)
        errors = [_error([middle for middle, _, _ in curves], expected)]
        errors += [_error(peers[peer][name], expected) if peer in peers else "did not run" for peer in PEERS]
        refused = f"{len(found) - len(curves)} of {len(found)}"
        table.add_row(name, errors[0], f"{held} of {len(curves)}", refused, *errors[1:])
    out.print(table)


def law_named(name: str, batch_scope: str = "per_worker") -> Law:
    """One of the laws."""
    return next(law for law in laws(batch_scope) if law.name == name)


def truth(name: str, workers: Sequence[float]) -> np.ndarray:
    """The speedups of the law with the parameters of TRUTHS."""
    return law_named(name).speedup(np.array(workers, dtype=float), np.array(TRUTHS[name]))


def simulated(name: str, seed: int = 0, counts: Sequence[int] = COUNTS, noise: float = NOISE) -> list[Row]:
    """Rows whose speedups follow the law, each with noise, and with intervals that know how much."""
    generator, half = np.random.default_rng(seed), math.exp(1.96 * noise)
    speedups = truth(name, counts) * np.exp(generator.normal(0, noise, len(counts)))
    return [
        Row(
            "ok",
            workers=count,
            speedup=Estimate(speedup, speedup / half, speedup * half),
            oversubscribed=False,
            batch_scope="per_worker",
        )
        for count, speedup in zip(counts, speedups.tolist(), strict=True)
    ]


def _error(predicted: list[float], expected: float) -> str:
    """The median, and the worst, as shares of the truth."""
    if not predicted:
        return "-"
    errors = [abs(value / expected - 1) for value in predicted]
    return f"{100 * np.median(errors):.1f} % (worst {100 * max(errors):.0f} %)"


def _peers(sweeps: dict[str, list[list[float]]]) -> dict[str, dict[str, list[float]]]:
    """By peer and law the predicted speedups; a peer that can't be installed, or fails, is left out."""
    found: dict[str, Any] = {}
    for peer in PEERS:
        with tempfile.TemporaryDirectory() as folder:
            venv.create(folder, with_pip=True)
            python = str(Path(folder) / "bin" / "python")
            installed = subprocess.run([python, "-m", "pip", "install", "--quiet", peer], check=False)
            if installed.returncode:
                continue
            told = json.dumps({"counts": [1, *COUNTS], "at": AT, "sweeps": sweeps})
            done = subprocess.run(
                [python, str(Path(__file__).parent / "law_peer.py"), peer],
                input=told,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                print(f"{peer}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
                continue
            found[peer] = json.loads(done.stdout.strip().splitlines()[-1])
    return found
