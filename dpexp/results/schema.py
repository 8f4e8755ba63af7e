"""One result a job, as `result.json` holds it: raw values; every statistic is derived later."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, PositiveFloat, model_validator
from pydantic.dataclasses import dataclass

from dpexp.config.experiment import ExperimentConfig
from dpexp.machine.core_latency import CoreLatency
from dpexp.machine.environment import Environment

VERSION = 8
VARIANTS = ("candidate", "baseline", "best_sequential", "independent")
Status = Literal["ok", "failed", "diverged", "unfinished"]

_CONFIG = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True, config=_CONFIG)
class Distribution:
    """One phase's seconds over the steps of one worker: their sum, and percentiles."""

    seconds: float
    median: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True, config=_CONFIG)
class WorkerTimes:
    """One worker's part in one training; see training.worker.WorkerReport."""

    rank: int
    threads: int
    seconds: float
    process_cpu_seconds: float
    startup_seconds: float
    warmup_seconds: float
    evaluation_seconds: float
    # Those of phases.PHASES that could be told apart, the whole `step`, and of a script the `traced_step`.
    phases: dict[str, Distribution]


@dataclass(frozen=True, slots=True, config=_CONFIG)
class StepTimes:
    """Steps of a training, in bins by how long their slowest worker computed, and the phases after that took."""

    updates: int  # of whole batches
    partial_updates: int  # of batches with fewer samples ...
    partial_seconds: float  # ... of which the shortest took so long
    workers: int  # that made each step together
    compute_seconds: list[float]  # of each bin
    counts: list[int]
    phases: dict[str, list[float]]  # seconds of all steps and workers of each bin together


@dataclass(frozen=True, config=_CONFIG)
class Training:
    """One timed training."""

    turn_seconds: Annotated[list[PositiveFloat], Field(min_length=1)]  # of each turn, by the slowest worker
    steps: StepTimes | None  # None where a core has more than one thread, or computing can't be told from waiting
    epoch_losses: list[float | None]  # means over all samples; None: not finite; [] of a script
    test_accuracy: float | None  # None where it was not evaluated, because another block has the same updates
    epoch_seconds: list[float]  # until the end of each epoch, the clock stopped for evaluation; only with a target
    epoch_accuracies: list[float]  # there, on the test split
    parameters_sha256: str
    linear_kernel: str
    workers: Annotated[list[WorkerTimes], Field(min_length=1)]
    core_latency: CoreLatency | None = None  # just before; None where cores exchange nothing, or it is unknown

    @functools.cached_property
    def seconds(self) -> float:
        """The time of the training: of all its turns."""
        return sum(self.turn_seconds)

    @property
    def threads(self) -> int:
        """Threads of each worker process."""
        return self.workers[0].threads

    @property
    def phase_seconds(self) -> list[dict[str, float]]:
        """The total seconds by phase of each worker; empty where none were recorded."""
        recorded = [worker.phases for worker in self.workers if worker.phases]
        return [{name: times.seconds for name, times in phases.items()} for phases in recorded]


@dataclass(frozen=True, slots=True)
class Conditions:
    """The machine during one block."""

    other_cores: float  # cores that programs other than ours used, as a mean over the block
    stolen_cores: float  # cores that a virtual machine's host gave to others
    throttled_seconds: float  # for which the cgroup's CPU quota held processes back


@dataclass(frozen=True, slots=True, config=_CONFIG)
class Block:
    """Trainings that took turns. `warmup`: run and discarded. `baseline` is None when the measurement has none."""

    warmup: bool
    order: list[str]  # of the first turns; the next ones run backwards, and so on
    candidate: Training
    baseline: Training | None
    best_sequential: Training | None  # one process with the best number of threads, where that is another number
    independent: Training | None  # as many sequential processes at once, each with a worker's share
    conditions: Conditions
    wall_seconds: float  # of all: processes, warm-up, trainings, evaluation

    @property
    def trainings(self) -> dict[str, Training]:
        """All trainings of this block, by name."""
        named = {name: getattr(self, name) for name in VARIANTS}
        return {name: training for name, training in named.items() if training is not None}


@dataclass(frozen=True, slots=True, config=_CONFIG)
class Warning:
    """One reason for doubt. `severity` is how many times its threshold was reached, so that kinds can be ranked."""

    kind: str
    severity: float
    text: str
    advice: str

    def __str__(self) -> str:
        return f"{self.text}: {self.advice}"


def diverged(blocks: Sequence[Block]) -> bool:
    """Whether a loss of any training was not a finite number."""
    trainings = (training for block in blocks for training in block.trainings.values())
    return any(loss is None for training in trainings for loss in training.epoch_losses)


@dataclass(frozen=True, slots=True, config=_CONFIG)
class RunResult:
    """Everything that one job measured, and on what. `error` is None when the status is ok."""

    format: Literal["dpexp-result"]
    version: Literal[8]  # VERSION
    status: Status
    error: str | None
    details: str | None  # the traceback, or the stacks of all workers
    started_at: str
    resumed_at: list[str]  # blocks were measured after each of these, too
    config_sha256: str  # see ExperimentConfig.sha256
    config: ExperimentConfig
    environment: Environment
    data_seconds: float  # loading the data set, in the parent
    blocks: list[Block]  # with those finished before a failure
    warnings: list[Warning]  # as known when it was written; the table derives them anew
    user_files: dict[str, str]  # SHA-256 of the data file and the model's modules; see measurement.user_files

    @model_validator(mode="after")
    def _check(self) -> RunResult:
        if self.status == "ok" and not self.kept():
            raise ValueError("the status is ok, but no block was kept")
        if self.config_sha256 != self.config.sha256:
            raise ValueError("the configuration is not the one that was measured: its SHA-256 differs")
        return self

    def kept(self) -> list[Block]:
        """The blocks that count."""
        return [block for block in self.blocks if not block.warmup]
