"""What a measurement needs of whatever trains: arms that live for a block and make steps when they are told to."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from dpexp.clock.messages import Turn
from dpexp.config.job import JobConfig
from dpexp.results.schema import Arm


@dataclass(frozen=True)
class Pace:
    """How long turns are, and the untimed steps at the beginning of each."""

    turn_seconds: float
    lead_seconds: float
    least_lead_steps: int = 0
    traced_every: int | None = None  # so many rounds, of which one is traced and doesn't count


@dataclass
class TimedSteps:
    """The steps of one arm so far."""

    turn_seconds: list[list[float]] = field(default_factory=list)  # of each timed step of each turn
    first_steps: list[int] = field(default_factory=list)  # of each turn the number of its first timed step
    warmup_seconds: float = 0.0
    step_seconds: float = 0.0  # of one step, as in the warm-up
    least_step_seconds: float = 0.0  # the same of the shortest
    steps: int = 0  # made so far, untimed ones included


class RunningArms(Protocol):
    """The arms of a block while they live; all but one sleep."""

    def turn(self, name: str, turn: Turn) -> list[float]:
        """Let one arm make some steps; the wall seconds of each timed one. Raises WorkerError, ScriptEnded."""

    def end(self, timed: Mapping[str, TimedSteps]) -> dict[str, Arm]:
        """Let all end; what a result keeps of each. Raises WorkerError."""


class Trainer(Protocol):
    """Starts what arms train: the variants of one job, by name."""

    pace: Pace

    @property
    def files(self) -> AbstractSet[str]:
        """Names of the user's files that what has run depends on, as far as that was not known beforehand."""

    def get_ready(self) -> None:
        """Return when nothing that starts slowly would disturb the first block."""

    def running(self, variants: Mapping[str, JobConfig]) -> AbstractContextManager[RunningArms]:
        """Within, an arm of each variant lives in fresh processes, started in this order. Raises WorkerError."""
