"""One result a job: a versioned JSON file with raw values; every statistic is derived later."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, PositiveFloat, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from dpexp.conditions import Conditions
from dpexp.config import ExperimentConfig
from dpexp.environment import Environment
from dpexp.errors import ResultError
from dpexp.files import write_atomically

FILE_NAME = "result.json"
VERSION = 2

_CONFIG = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=_CONFIG)
class Training:
    """One timed training. `seconds` is the slowest worker's, between the barriers."""

    seconds: PositiveFloat
    epoch_losses: list[float | None]  # mean over the training samples as visited; None: not finite
    test_loss: float | None  # evaluated in the first kept block only: the others repeat it
    test_accuracy: float | None
    epoch_seconds: list[float]  # until the end of each epoch, the clock stopped for evaluation; only with a target
    epoch_accuracies: list[float]  # there, on the test split
    parameters_sha256: str
    linear_kernel: str
    launch_seconds: float  # wall time of all: processes, warm-up, training, evaluation
    workers: list[dict[str, Any]]  # a rank's threads, and its seconds in and outside the timed region

    @property
    def phase_seconds(self) -> list[dict[str, float]]:
        """Of each worker the seconds by phase, in all; empty where none were recorded."""
        recorded = [worker["phases"] for worker in self.workers if worker.get("phases")]
        return [{name: distribution["seconds"] for name, distribution in one.items()} for one in recorded]


@dataclass(frozen=True, config=_CONFIG)
class Block:
    """One round. `warmup`: run and discarded. `baseline` is None when the measurement has none."""

    warmup: bool
    order: list[str]
    candidate: Training
    baseline: Training | None
    best: Training | None  # one sequential process with the best number of threads, where that is another number
    unsynchronized: Training | None  # the candidate, but nobody waits within a step
    independent: Training | None  # as many sequential processes at once, each with a worker's share
    conditions: Conditions


@dataclass(frozen=True, config=_CONFIG)
class RunResult:
    """Everything that one job measured, and on what. `error` is None when the status is ok."""

    format: Literal["dpexp-result"]
    version: Literal[2]  # VERSION
    status: Literal["ok", "failed", "diverged"]
    error: str | None
    details: str | None
    started_at: str
    config: ExperimentConfig
    environment: Environment
    data_seconds: float  # loading the data set, in the parent
    blocks: list[Block]  # those finished before a failure, too
    doubts: list[str] = dataclasses.field(default_factory=list)  # as measured; the table derives them anew

    @model_validator(mode="after")
    def _check_blocks(self) -> RunResult:
        if self.status == "ok" and not self.kept():
            raise ValueError("the status is ok, but no block was kept")
        return self

    def kept(self) -> list[Block]:
        """The blocks that count."""
        return [block for block in self.blocks if not block.warmup]


_ADAPTER = TypeAdapter(RunResult)


def diverged(blocks: list[Block]) -> bool:
    """Whether any training's loss was ever not a finite number."""
    trainings = [training for block in blocks for training in (block.candidate, block.baseline) if training]
    return any(loss is None for training in trainings for loss in training.epoch_losses)


def finite(value: float) -> float | None:
    """The value, or None for NaN and infinity, which JSON doesn't have."""
    return value if math.isfinite(value) else None


def write(result: RunResult, folder: Path) -> Path:
    """Write `result.json` into `folder`, all or nothing. Raises ResultError."""
    path = folder / FILE_NAME
    text = json.dumps(dataclasses.asdict(result), indent=1, allow_nan=False)
    try:
        write_atomically(path, text + "\n")
    except OSError as error:
        raise ResultError(f"can't write {path}: {error.strerror}") from error
    return path


def read(path: Path) -> RunResult:
    """Read one result. Raises ResultError for what is damaged or of another version."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ResultError(f"{path}: can't be read ({error.strerror})") from error
    try:
        return _ADAPTER.validate_json(content)
    except ValidationError as error:
        raise ResultError(f"{path}: {_why(content, error)}") from error


def _why(content: bytes, error: ValidationError) -> str:
    """What is wrong with a file that is no result of this version."""
    try:
        values = json.loads(content)
    except ValueError as damage:
        return f"damaged ({damage})"
    if not isinstance(values, dict) or values.get("format") != "dpexp-result":
        return "not a result of dpexp"
    if values.get("version") != VERSION:
        return f"version {values.get('version')}, but this dpexp reads version {VERSION}"
    first = error.errors()[0]
    return f"damaged ({'.'.join(str(part) for part in first['loc'])}: {first['msg']})"
