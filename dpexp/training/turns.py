"""Turns: a training runs for some milliseconds, then sleeps while the other trainings of its block have theirs.

The speed of a shared machine wanders within seconds. Trainings that take turns of milliseconds meet the same speeds.
The first steps of a turn are not timed: they find caches that another training has filled.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from dpexp.processes.heartbeat import WAITING, heartbeat
from dpexp.processes.recorder import NoRecorder, Recorder
from dpexp.processes.threads import wait_until_idle
from dpexp.strategies import Strategy


@dataclass(frozen=True)
class Waiting:
    """What rank 0 notifies when its world sleeps until it may go on."""

    step_seconds: float | None = None  # of a step in the warm-up, when that is over


@dataclass(frozen=True)
class Plan:
    """How a training is cut into turns: equal shares of its steps, each with some untimed steps first."""

    turns: int
    lead_steps: int

    def bounds(self, updates: int) -> list[int]:
        """The first step of each turn, and the number of all steps."""
        return [turn * updates // self.turns for turn in range(self.turns + 1)]


IN_ONE_PIECE = Plan(1, 0)


class Turns:
    """The clock of one process's training; it stands between turns. All ranks call the same methods together."""

    def __init__(
        self, strategy: Strategy, gate: Connection | None = None, notify: Callable[[Any], None] = lambda notice: None
    ) -> None:
        """Rank 0 waits at `gate` for each turn; without one, its world trains in one piece. Other ranks follow it."""
        self._strategy, self._gate, self._notify = strategy, gate, notify
        self.step_seconds: float | None = None
        self.handover_seconds = 0.0  # between turns, other trainings' turns included
        self.turn_seconds: list[float] = []  # of each turn, with its untimed steps at the speed of the timed ones
        self._recorder: Recorder = NoRecorder()
        self._bounds, self._lead_steps = [0], 0
        self._next = self._end = self._timed_from = 0
        self._started: float | None = None  # while the clock runs
        self._counted = 0.0  # of this turn, until the clock was stopped

    def wait(self) -> Any:
        """Sleep until this world may go on; return what rank 0 received at the gate."""
        message = None
        with heartbeat.within(WAITING):
            if torch.get_num_threads() > 1:
                wait_until_idle()  # the next world shall not meet a spinning thread
            self._strategy.barrier()
            if self._gate is not None:
                self._notify(Waiting(self.step_seconds))
                message = self._gate.recv()
            self._strategy.barrier()  # the other ranks sleep here
        return message

    def begin(self, updates: int, recorder: Recorder) -> None:
        """Wait for the first turn of a training of so many steps; `recorder` records the timed ones."""
        plan = self.wait() or IN_ONE_PIECE
        plan = Plan(*self._strategy.broadcast([plan.turns, plan.lead_steps]))
        self._bounds, self._lead_steps, self._recorder = plan.bounds(updates), plan.lead_steps, recorder
        self._open_turn()

    def before_step(self, number: int) -> None:
        """Called before each step: most often, nothing is due."""
        if number == self._next:
            if self._started is not None and number == self._end:
                self._close_turn()
                closed = time.perf_counter()
                self.wait()
                self.handover_seconds += time.perf_counter() - closed
                self._open_turn()
            if self._started is None and number == self._timed_from:
                self._next = self._end
                self._start_clock()

    def end(self) -> None:
        """After the last step; returns when this world may go on."""
        self._close_turn()
        self.wait()

    def pause(self) -> float:
        """Stop the clock in the middle of a turn; return the seconds of the training so far."""
        self._strategy.barrier()
        if self._started is not None:
            self._stop_clock()
            self._next = -1  # it runs again from `resume`
        return sum(self.turn_seconds) + self._counted

    def resume(self) -> None:
        """Start the clock again, if it ran."""
        if self._next == -1:
            self._next = self._end
            self._start_clock()

    def _open_turn(self) -> None:
        first, self._end = self._bounds[len(self.turn_seconds) :][:2]
        self._timed_from = self._next = first + min(self._lead_steps, (self._end - first) // 3)
        self._counted = 0.0
        self._strategy.recorder = NoRecorder()

    def _start_clock(self) -> None:
        self._strategy.barrier()
        self._strategy.recorder = self._recorder
        self._recorder.start()
        self._started = time.perf_counter()

    def _stop_clock(self) -> None:
        self._strategy.synchronize()
        assert self._started is not None
        self._counted += time.perf_counter() - self._started
        self._started = None

    def _close_turn(self) -> None:
        """Each rank stops its clock after its last step; the slowest counts."""
        self._stop_clock()
        first = self._bounds[len(self.turn_seconds)]
        self.turn_seconds.append(self._counted * (self._end - first) / (self._end - self._timed_from))
        self._strategy.recorder = NoRecorder()
