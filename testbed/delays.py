"""Trainings, by scripts and built-in ones, of which one rank is delayed in a phase of each step."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from dpexp.config.compose import compose_config
from dpexp.config.job import CANDIDATE, JobConfig
from dpexp.launchers.local import LocalLauncher
from dpexp.train import worker
from dpexp.train.models import architectures
from dpexp.train.models.optimizers import Optimizer
from dpexp.train.worker import WorkerReport

SCRIPT = "torchrun --standalone --nproc-per-node={workers} testbed/delayed_script.py"
JOB = ("measurement.best_sequential=false", "measurement.precision=0.0001")
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


@dataclass(frozen=True)
class Delay:
    """A worker of a built-in training that sleeps in each step, on one rank."""

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


def prepared(case: Case, *overrides: str) -> tuple[JobConfig, LocalLauncher]:
    """The job of a case, and what starts its workers."""
    options, launcher = [*JOB, f"workers={case.workers}", *overrides], LocalLauncher({})
    if case.kind == "script":
        delay = f"--delay {case.place} --seconds {case.seconds}" + (
            f" --rank {case.rank}" if case.place in PHASES else ""
        )
        options.append(f"script.command='{SCRIPT} {delay}'")
    else:
        options += [f"strategy={case.kind}", f"model={case.model}", "data.size=20000"]
        options.append("measurement.whole_trainings=never")
        launcher = LocalLauncher({CANDIDATE: Delay(case)})
    if case.place in PHASES:  # only where no single rank is slow, the steps of the baseline are looked at
        options.append("measurement.baseline=none")
    return compose_config(*options), launcher
