"""One result a job: a versioned JSON file with raw values; every statistic is derived later."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, PositiveFloat, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from dpexp.conditions import Conditions
from dpexp.config import ExperimentConfig
from dpexp.environment import Environment, describe
from dpexp.errors import ConfigError, ResultError, VersionError
from dpexp.files import write_atomically

FILE_NAME = "result.json"
VERSION = 3
VARIANTS = ("candidate", "baseline", "best", "unsynchronized", "independent")

_CONFIG = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True, config=_CONFIG)
class Distribution:
    """Of one phase's times over the steps of one worker: their sum, and percentiles."""

    seconds: float
    median: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True, config=_CONFIG)
class WorkerTimes:
    """One worker's part in one training; see worker.WorkerReport."""

    rank: int
    threads: int
    seconds: float
    cpu_seconds: float
    process_cpu_seconds: float
    startup_seconds: float
    warmup_seconds: float
    evaluation_seconds: float
    phases: dict[str, Distribution]  # of position.PHASES, and of the whole `step`; empty where none were recorded


@dataclass(frozen=True, slots=True, config=_CONFIG)
class Training:
    """One timed training. `seconds` is the slowest worker's, between the barriers."""

    seconds: PositiveFloat
    epoch_losses: Annotated[list[float | None], Field(min_length=1)]  # means over all samples; None: not finite
    test_loss: float | None  # evaluated in the first kept block only: the others repeat it
    test_accuracy: float | None
    epoch_seconds: list[float]  # until the end of each epoch, the clock stopped for evaluation; only with a target
    epoch_accuracies: list[float]  # there, on the test split
    parameters_sha256: str
    linear_kernel: str
    launch_seconds: float  # wall time of all: processes, warm-up, training, evaluation
    workers: Annotated[list[WorkerTimes], Field(min_length=1)]

    @property
    def threads(self) -> int:
        """Of each worker."""
        return self.workers[0].threads

    @property
    def phase_seconds(self) -> list[dict[str, float]]:
        """Of each worker the seconds by phase, in all; empty where none were recorded."""
        recorded = [worker.phases for worker in self.workers if worker.phases]
        return [{name: distribution.seconds for name, distribution in one.items()} for one in recorded]


@dataclass(frozen=True, slots=True, config=_CONFIG)
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

    @property
    def trainings(self) -> dict[str, Training]:
        """All of this block, by name."""
        named = {name: getattr(self, name) for name in VARIANTS}
        return {name: training for name, training in named.items() if training is not None}


@dataclass(frozen=True, slots=True, config=_CONFIG)
class RunResult:
    """Everything that one job measured, and on what. `error` is None when the status is ok."""

    format: Literal["dpexp-result"]
    version: Literal[3]  # VERSION
    status: Literal["ok", "failed", "diverged", "unfinished"]
    error: str | None
    details: str | None
    started_at: str
    resumed_at: list[str]  # blocks were measured after each of these, too
    config_sha256: str  # see ExperimentConfig.sha256
    config: ExperimentConfig
    environment: Environment
    data_seconds: float  # loading the data set, in the parent
    blocks: list[Block]  # those finished before a failure, too
    doubts: list[str] = dataclasses.field(default_factory=list)  # as measured; the table derives them anew
    own_files_sha256: str | None = None  # see own_files.sha256

    @model_validator(mode="after")
    def _check(self) -> RunResult:
        if self.status == "ok" and not self.kept():
            raise ValueError("the status is ok, but no block was kept")
        if self.config_sha256 != self.config.sha256:
            raise ValueError("the configuration is not the one that was measured: its SHA-256 is another")
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
    with write_errors(path):
        write_atomically(path, text + "\n")
    return path


@contextlib.contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn an OSError within into a ResultError that names `path`."""
    try:
        yield
    except OSError as error:
        raise ResultError(f"can't write {path}: {error.strerror}") from error


def read(path: Path) -> RunResult:
    """Read one result. Raises ResultError for what is damaged or of another version."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ResultError(f"{path}: can't be read ({error.strerror})") from error
    try:
        return _ADAPTER.validate_json(content)
    except ValidationError as error:
        raise _why(path, content, error) from error


def read_earlier(folder: Path, config: ExperimentConfig, environment: Environment) -> RunResult | None:
    """What an earlier run of this job has left in `folder`, where that counts: it measured the same.

    None where nothing does. Raises ConfigError for a result of another version or machine.
    """
    earlier = _of_this_machine(folder / FILE_NAME, environment.machine)
    if earlier is None or earlier.config_sha256 != config.sha256 or earlier.status == "diverged":
        return None
    same_code = earlier.environment.code_sha256 == environment.code_sha256
    return earlier if earlier.status == "ok" or same_code else None


def refuse_foreign(folder: Path) -> None:
    """Raise ConfigError when a result below `folder` is of another version or machine: it must not be added to."""
    machine = describe().machine
    for path in sorted(folder.rglob(FILE_NAME)):
        _of_this_machine(path, machine)


def _of_this_machine(path: Path, machine: str) -> RunResult | None:
    """The result, or None where there is none, or only damage."""
    try:
        result = read(path)
    except VersionError as error:
        raise ConfigError(f"{error}; resume it with that one, or start a new sweep") from error
    except ResultError:
        return None
    if result.environment.machine != machine:
        raise ConfigError(
            f"{path} was measured on {result.environment.machine}, and this is {machine}: "
            "times must not be mixed; resume it there, or start a sweep of its own here"
        )
    return result


def _why(path: Path, content: bytes, error: ValidationError) -> ResultError:
    """What is wrong with a file that is no result of this version."""
    try:
        values = json.loads(content)
    except ValueError as damage:
        return ResultError(f"{path}: damaged ({damage})")
    if not isinstance(values, dict) or values.get("format") != "dpexp-result":
        return ResultError(f"{path}: not a result of dpexp")
    if isinstance(values.get("version"), int) and values["version"] != VERSION:
        return VersionError(f"{path}: version {values['version']}, but this dpexp reads version {VERSION}")
    first = error.errors()[0]
    return ResultError(f"{path}: damaged ({'.'.join(str(part) for part in first['loc'])}: {first['msg']})")
