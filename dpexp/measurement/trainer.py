"""The interface of trainers: arms that are alive for a block and make steps on request."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from dpexp.config.job import JobConfig
from dpexp.processes.turn import Turn
from dpexp.results.schema import Arm


@dataclass(frozen=True)
class Pace:
    """The length of turns, and of the untimed steps at the beginning of each."""

    turn_seconds: float
    untimed_seconds: float
    min_untimed_steps: int = 0
    traced_every: int | None = None  # one of this many rounds is traced and doesn't count


@dataclass
class ArmSteps:
    """The steps of one arm so far."""

    turns: list[list[float]] = field(default_factory=list)  # seconds of each timed step of each turn
    first_steps: list[int] = field(default_factory=list)  # number of each turn's first timed step
    step_seconds: float = 0.0  # typical time of a step
    min_step_seconds: float = 0.0  # time of the shortest step
    steps: int = 0  # made so far, untimed ones included


class RunningArms(Protocol):
    """The live arms of a block; all but one sleep."""

    def run_turn(self, name: str, turn: Turn) -> list[float]:
        """Let one arm make some steps; return the wall seconds of each timed one. Raises WorkerError, ScriptEnded."""

    def end(self, timed: Mapping[str, ArmSteps]) -> dict[str, Arm]:
        """End all arms; return their results. Raises WorkerError, DivergedError."""


class Trainer(Protocol):
    """Starts the arms of one job, by name."""

    files: set[str]  # the user's files that the arms so far depend on, besides those of the fingerprint

    def pace(self, configs: Mapping[str, JobConfig]) -> Pace:
        """Return the length of turns of a block with these arms."""

    def running(self, configs: Mapping[str, JobConfig]) -> AbstractContextManager[RunningArms]:
        """Keep the arms of these names alive in fresh processes while the context is open.

        Raises ConfigError, WorkerError.
        """
