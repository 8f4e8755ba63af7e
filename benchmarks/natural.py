"""Trainings whose steps differ inherently, each against the truth: plain runs, in turn with dpexp's commands."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.setup import TORCHRUN, command, out, plain_rate, shown
from dpexp.analysis.estimate import Estimate

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Script:
    """A script whose steps differ."""

    name: str
    words: str
    batch: int


SCRIPTS = [
    Script("long batches", "cases/long-batches/train.py", 16),
    Script("long batches, together", "cases/long-batches/train.py --together", 16),
    Script("validation on rank 0", "cases/pauses/train.py --pause validation", 64),
    Script("checkpoints", "cases/pauses/train.py --pause checkpoint", 64),
    Script("loaders anew each epoch", "cases/pauses/train.py --pause loader", 64),
]


def run(rounds: int) -> None:
    """So many commands of each."""
    for script in SCRIPTS:
        _show(script.name, [_of_script(script) for _ in range(rounds)])
    _show("random depth (own model)", [of_random_depth() for _ in range(rounds)])


@dataclass(frozen=True)
class Outcome:
    """One command, and the throughputs of plain runs before and after it: of one process, and of two."""

    plain: tuple[float, float]
    overall: Estimate
    speedup: float
    samples_per_second: float
    warns: bool  # whether it warns that other programs disturbed steps

    @property
    def truth(self) -> float:
        """The speedup of plain runs."""
        return self.plain[1] / self.plain[0]


def _show(name: str, found: Sequence[Outcome]) -> None:
    contained = sum(one.overall.low <= one.truth <= one.overall.high for one in found)
    out.print(f"{name}: {contained} of {len(found)} intervals contain the truth")
    for one in found:
        rate, warned = one.samples_per_second / one.plain[1], "; warns of disturbances" if one.warns else ""
        out.print(
            f"  truth {one.truth:.2f}; overall {shown(one.overall)}, in the table {one.speedup:.2f}; "
            f"samples a second / plain {rate:.2f}{warned}"
        )


def _of_script(script: Script) -> Outcome:
    program = f"{HERE}/{script.words} --batch {{local_batch_size}}"
    dpexp = [
        "workers=2",
        f"batch.size={script.batch}",
        "measurement.best_sequential=false",
        f"script.command={TORCHRUN} {program}",
    ]
    before = [plain_rate(program, script.batch, processes) for processes in (1, 2)]
    row = command(*dpexp)[0][0]
    after = [plain_rate(program, script.batch, processes) for processes in (1, 2)]
    return _outcome(row, (_mean(before[0], after[0]), _mean(before[1], after[1])))


def of_random_depth() -> Outcome:
    """The truth of dpexp's own loop: whole trainings in one piece, by the same command."""
    row = command(
        "workers=2",
        "model=custom",
        "model.builder=mine:build",
        "data.size=20000",
        "measurement.whole_trainings=always",
        "measurement.best_sequential=false",
        where=HERE / "cases/random-depth",
    )[0][0]
    one, two = (row.data_size or 0) * (row.epochs or 0) / row.baseline_trained_seconds, 0.0
    two = (row.data_size or 0) * (row.epochs or 0) / row.trained_seconds
    return _outcome(row, (one, two))


def _outcome(row, plain: tuple[float, float]) -> Outcome:  # type: ignore[no-untyped-def]
    warns = any(warning.kind == "disturbed" for warning in row.warnings)
    return Outcome(plain, row.overall_speedup, row.speedup.value, row.samples_per_second, warns)


def _mean(first: float, second: float) -> float:
    return math.sqrt(first * second)
