"""Gives the trainings of a block their turns: one world trains, the others sleep."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

from dpexp.training.turns import IN_ONE_PIECE, Plan, Waiting

TURN_SECONDS = 0.03  # of the slowest world's turn
LEAD_SECONDS = 0.003  # untimed, at the beginning of each


class Conductor:
    """The turns of one block. Every world first makes its warm-up alone, then its turns, then all go on together."""

    def __init__(
        self, updates: Sequence[int], gates: list[list[Connection]], on_turn: Callable[[float], None], reverse: bool
    ) -> None:
        """Worlds are numbered as in `updates` and `gates`; a world of independent copies has a gate for each.

        `on_turn` receives the done fraction of all turns. The order alternates, and begins with the last world where
        `reverse` says so.
        """
        self._updates, self._gates, self._on_turn, self._reverse = updates, gates, on_turn, reverse
        self._step_seconds: list[float | None] = [None] * len(updates)
        self._missing = [len(copies) for copies in gates]  # members of each world that don't wait yet
        self._agenda = self._grants()
        self._active: int | None = None
        self._ended = False

    def on_notice(self, world: int, rank: int, notice: Any) -> None:
        """A worker has notified something."""
        if not isinstance(notice, Waiting) or self._ended:
            return
        self._step_seconds[world] = notice.step_seconds
        self._missing[world] -= 1
        if not any(self._missing):  # the active world sleeps again, too
            self._active = next(self._agenda, None)
            self._ended = self._active is None
            if self._active is not None:
                self._missing[self._active] = len(self._gates[self._active])

    def _grants(self) -> Iterator[int]:
        """Let one world after the other go on; yields its number."""
        worlds = range(len(self._updates))
        for world in worlds:
            self._grant(world, None)
            yield world
        plan = self._plan()
        for turn in range(plan.turns):
            self._on_turn(turn / plan.turns)
            for world in worlds if (turn % 2 == 1) == self._reverse else reversed(worlds):
                self._grant(world, plan)
                yield world
        self._on_turn(1.0)
        for world in worlds:
            self._grant(world, None)

    def _grant(self, world: int, message: Plan | None) -> None:
        for gate in self._gates[world]:
            gate.send(message)

    def _plan(self) -> Plan:
        """As many turns for all as make the slowest world's about TURN_SECONDS long."""
        if any(seconds is None for seconds in self._step_seconds):
            return IN_ONE_PIECE  # there was no warm-up to tell
        steps = [seconds for seconds in self._step_seconds if seconds is not None]
        longest = max(updates * seconds for updates, seconds in zip(self._updates, steps, strict=True))
        turns = max(1, min(*self._updates, math.ceil(longest / TURN_SECONDS)))
        return Plan(turns, round(LEAD_SECONDS / max(steps)))
