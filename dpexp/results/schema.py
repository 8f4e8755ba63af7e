"""One result per job, as stored in `result.json`: the seconds of each step; every statistic is derived later."""

from __future__ import annotations

import functools
from collections import Counter
from typing import Annotated, Final, Literal

import numpy as np
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from dpexp.config.built_in import AnyConfig
from dpexp.config.job import CANDIDATE
from dpexp.machine.environment import Environment
from dpexp.phases import PHASES

VERSION: Final = 16
Status = Literal["ok", "failed", "diverged", "unfinished"]

# Bounds far beyond any measurement, within which statistics are finite.
Seconds = Annotated[float, Field(gt=1e-9, lt=1e9)]
PhaseSeconds = Annotated[float, Field(gt=-1e9, lt=1e9)]  # rounding may leave less than 0
StepSeconds = Annotated[list[Seconds], Field(min_length=1)]
Duration = Annotated[float, Field(ge=0, lt=1e9)]
Cores = Annotated[float, Field(ge=0, lt=1e6)]
Bytes = Annotated[int, Field(ge=0, lt=2**60)]
Count = Annotated[int, Field(gt=0, lt=2**40)]

_CONFIG = ConfigDict(allow_inf_nan=False)


@dataclass(frozen=True, slots=True, config=_CONFIG)
class Process:
    """One process of a training."""

    threads: Count
    samples: Annotated[int, Field(ge=0, lt=2**40)] = 0  # samples that a script's model receives in a step; 0: unknown
    exchanges: bool = False  # whether a script's model is wrapped to exchange gradients
    by_ddp: bool = False  # whether it is a DistributedDataParallel that exchanges by its process group
    host: str = ""  # the name of its machine


@dataclass(frozen=True, config=_CONFIG)
class Arm:
    """One way to train, alive for one block in fresh processes: the wall seconds of its timed steps.

    The steps are those of rank 0 in a built-in training, and the mean of all processes in a script.
    """

    samples_per_step: Count  # samples of a step, of all processes together
    turns: Annotated[list[StepSeconds], Field(min_length=1)]  # the seconds of each timed step of each turn
    first_steps: list[Annotated[int, Field(ge=0, lt=2**24)]]  # the number of each turn's first timed step
    phases: dict[str, list[list[PhaseSeconds]]]  # seconds in some steps, by phase: (steps, processes)
    between_epochs_seconds: Duration  # time of an epoch that belongs to no step; 0 for a script
    processes: Annotated[list[Process], Field(min_length=1)]  # by rank
    gradient_bytes: Bytes | None = None  # size of one process's gradient; None for a script
    memory_bytes: Bytes | None = None  # peak memory of all processes, helpers included; shared pages count once
    cpu_seconds: Duration = 0.0  # CPU time of a script's processes, helpers included; 0 for built-in trainings

    @model_validator(mode="after")
    def _check(self) -> Arm:
        if len(self.first_steps) != len(self.turns):
            raise ValueError("first_steps: not one for each turn")
        shapes = {tuple(len(step) for step in steps) for steps in self.phases.values()}
        if self.phases and (set(PHASES) - {"wait"} - set(self.phases) or len(shapes) > 1 or len(set(*shapes)) != 1):
            raise ValueError("phases: not as many processes in each step of each phase")
        return self

    @property
    def threads(self) -> int:
        """Threads of each process."""
        return self.processes[0].threads

    @functools.cached_property
    def all_step_seconds(self) -> np.ndarray:
        """All timed steps (n,)."""
        return np.concatenate([np.asarray(turn) for turn in self.turns])


@dataclass(frozen=True, slots=True, config=_CONFIG)
class Training:
    """A whole training in one piece: what it learned, and how long it took."""

    seed: int
    seconds: Seconds
    epoch_losses: Annotated[list[float], Field(min_length=1)]  # means over all samples
    test_accuracy: float | None  # after the last epoch
    epoch_accuracies: list[float]  # on the test split, after each epoch; only with a target accuracy
    parameters_sha256: str


@dataclass(frozen=True, slots=True, config=_CONFIG)
class Conditions:
    """The state of the machine during one block."""

    other_cores: Cores  # mean number of cores that other programs used
    stolen_cores: Cores  # cores that a virtual machine's host gave to others
    throttled_seconds: Duration  # time for which the cgroup's CPU quota held processes back


@dataclass(frozen=True, slots=True, config=_CONFIG)
class Block:
    """Arms that took turns, each in processes of its own."""

    arms: dict[str, Arm]  # by name, in the order of their first turns; the next turns run backwards, and so on
    conditions: Conditions
    wall_seconds: Duration  # time of the whole block: starts, warm-up, turns


@dataclass(frozen=True, slots=True, config=_CONFIG)
class JobResult:
    """Everything that one job measured. `error` is None if the status is ok."""

    format: Literal["dpexp-result"]
    version: Literal[16]  # VERSION
    status: Status
    error: str | None
    details: str | None  # the traceback, or the stacks of all workers
    started_at: str
    resumed_at: list[str]  # when it was resumed to measure more blocks
    config_sha256: str  # see JobConfig.sha256
    config: AnyConfig
    environment: Environment
    blocks: list[Block]  # including those finished before a failure
    trainings: dict[str, list[Training]]  # whole ones, by the arm's name; of several seeds with a target accuracy
    user_files: dict[str, str]  # SHA-256 of data, models and scripts, with what they import; see user_files.py

    @model_validator(mode="after")
    def _check(self) -> JobResult:
        if self.status == "ok" and not self.blocks:
            raise ValueError("the status is ok, but there is no block")
        if not all(CANDIDATE in block.arms for block in self.blocks):
            raise ValueError(f"a block has no arm {CANDIDATE}")
        if any(len({len(arm.turns) for arm in block.arms.values()}) > 1 for block in self.blocks):
            raise ValueError("arms of a block took different numbers of turns")
        if self.config_sha256 != self.config.sha256:
            raise ValueError("the configuration is not the one that was measured: its SHA-256 differs")
        return self

    @property
    def threads_on_host(self) -> int:
        """Threads that compute at the same time on one machine, the one with the most."""
        hosts = Counter(process.host for process in self.blocks[0].arms[CANDIDATE].processes)
        return self.config.threads_per_worker * max(hosts.values())
