"""Is the slow worker named? Delays in each step of one rank, in each phase, in scripts and in our own trainings."""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.table import Table

from benchmarks.setup import TORCHRUN, out, progress
from dpexp.analysis.table import aggregate
from dpexp.analysis.table_row import Row
from dpexp.config.compose import compose_config
from dpexp.config.job import CANDIDATE, JobConfig
from dpexp.launchers.local import LocalLauncher
from dpexp.measurement import job
from dpexp.report.command import measuring_alone
from dpexp.train import worker
from dpexp.train.models import architectures
from dpexp.train.models.optimizers import Optimizer
from dpexp.train.worker import WorkerReport

TOLERANCE = 0.2  # of the delay's length
PEER = "benchmarks/script_peer.py"
JOB = ("measurement.best_sequential=false", "measurement.precision=0.0001")
KINDS = ("script", "sync_dp", "ddp")
PHASES = {"data": "data", "forward": "compute", "backward": "compute", "update": "update"}  # by the place of the delay


@dataclass(frozen=True)
class Case:
    """A training with a delay, and who is to be named."""

    kind: str
    workers: int
    place: str  # of the delay; none; or samples: all workers' steps differ
    rank: int = 0
    seconds: float = 0.003
    model: str = "mlp"

    @property
    def job_seconds(self) -> float:
        """Enough for some tens of traced steps: a script's are one of some turns, and four workers' take 20 ms."""
        if self.kind != "script":
            return 10.0
        return 20.0 if self.workers == 2 and self.place in PHASES else 40.0

    @property
    def is_right(self) -> Callable[[Row], bool]:
        """Whether a row names whom it should."""
        phase = PHASES.get(self.place)
        if phase is None:
            return lambda row: row.slow_rank is None and bool(row.slow_phase) == (self.place == "samples")
        return lambda row: (
            (row.slow_rank, row.slow_phase) == (self.rank, phase)
            and abs(row.slow_seconds / self.seconds - 1) < TOLERANCE
        )


CASES = [
    Case(kind, workers, place, rank)
    for kind in KINDS
    for workers, places in {
        2: [*((place, rank) for place in PHASES for rank in (0, 1)), ("none", 0), ("none", 0)],
        4: [*((place, rank) for rank, place in enumerate(PHASES)), ("none", 0)],
    }.items()
    for place, rank in places
] + [Case("script", 2, "samples"), Case("sync_dp", 2, "none", model="cnn"), Case("ddp", 2, "none", model="cnn")]


@dataclass(frozen=True)
class Delay:
    """A worker of dpexp's own trainer that sleeps in each step, on one rank."""

    case: Case

    def __call__(self, rank: int, *arguments: Any) -> WorkerReport:
        """Train, and return the report."""
        if rank == self.case.rank:
            match self.case.place:
                case "data":
                    self._sleep_before(torch.Tensor, "index_select", lambda tensor: tensor.ndim == 1)  # the labels
                case "forward":
                    self._sleep_before(F, "cross_entropy")
                case "backward":
                    architectures.build_model = self._with_slow_backward(architectures.build_model)
                case "update":
                    self._sleep_before(Optimizer, "step")
        return worker.run(rank, *arguments)

    def _sleep_before(self, owner: Any, name: str, chosen: Callable[[Any], bool] = lambda first: True) -> None:
        """From now on this process sleeps before each call of a function whose first argument is chosen."""
        function = getattr(owner, name)

        def delayed(first: Any, *arguments: Any, **options: Any) -> Any:
            if chosen(first):
                time.sleep(self.case.seconds)
            return function(first, *arguments, **options)

        setattr(owner, name, delayed)

    def _with_slow_backward(self, build: Callable[..., Any]) -> Callable[..., Any]:
        """A function that builds models whose last gradient comes late."""

        @functools.wraps(build)
        def built(*arguments: Any) -> Any:
            model = build(*arguments)
            next(model.parameters()).register_hook(lambda gradient: time.sleep(self.case.seconds))
            return model

        return built


def run(rounds: int, cases: list[Case] = CASES) -> None:
    """Print a line for each case: who was named in each round, and how often that was right."""
    table = Table(box=None)
    for head in ("training", "model", "workers", "3 ms in", "of rank", "named: rank, phase, ms, % of steps", "right"):
        table.add_column(head)
    rows: list[list[Row]] = [[] for _ in cases]
    with measuring_alone():
        for number in range(rounds):
            for case, found in zip(cases, rows, strict=True):
                progress.print(f"round {number + 1} of {rounds}: {case}")
                found.append(measured(case, case.job_seconds))
    for case, found in zip(cases, rows, strict=True):
        right = f"{sum(map(case.is_right, found))} of {rounds}"
        rank = str(case.rank) if case.place in PHASES else "-"
        table.add_row(case.kind, case.model, str(case.workers), case.place, rank, "; ".join(map(_named, found)), right)
    out.print(table)


def prepared(case: Case, *overrides: str) -> tuple[JobConfig, LocalLauncher]:
    """The job of a case, and what starts its workers."""
    options, launcher = [*JOB, f"workers={case.workers}", *overrides], LocalLauncher({})
    if case.kind == "script":
        delay = f"--delay {case.place} --seconds {case.seconds}" + (
            f" --rank {case.rank}" if case.place in PHASES else ""
        )
        options.append(f"script.command='{TORCHRUN} {PEER} {delay}'")
    else:
        options += [f"strategy={case.kind}", f"model={case.model}", "data.size=20000"]
        options.append("measurement.whole_trainings=never")
        launcher = LocalLauncher({CANDIDATE: Delay(case)})
    if case.place in PHASES:  # only where no single rank is slow, the steps of the baseline are looked at
        options.append("measurement.baseline=none")
    return compose_config(*options), launcher


def measured(case: Case, seconds: float) -> Row:
    """One job of so many seconds."""
    config, launcher = prepared(case, f"measurement.max_seconds={seconds}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job.measure_job(config, folder, launcher=launcher)
        (row,) = aggregate([folder]).good
    return row


def _named(row: Row) -> str:
    if row.slow_rank is None:
        return f"another {row.slow_phase} {1e3 * row.slow_seconds:.2f}" if row.slow_phase else "-"
    return f"{row.slow_rank} {row.slow_phase} {1e3 * row.slow_seconds:.2f} {100 * row.slow_share:.0f} %"
