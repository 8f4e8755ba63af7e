"""Gives the trainings of a block their turns: one world trains, the others sleep."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

from dpexp.training.turns import IN_ONE_PIECE, Plan, Waiting

# Of the slowest world's turn, and of the untimed steps at the beginning of each. Where more threads than cores have
# just woken up, the scheduler takes some tens of milliseconds to spread them.
TURN_SECONDS, LEAD_SECONDS = 0.03, 0.003
OVERSUBSCRIBED_TURN_SECONDS, OVERSUBSCRIBED_LEAD_SECONDS = 0.1, 0.03
LEAST_TURN = 0.5  # of that, of the fastest world's turn: shorter ones would be all beginning


class Conductor:
    """The turns of one block. Every world first makes its warm-up alone, then its turns, then all go on together."""

    def __init__(
        self,
        updates: Sequence[int],
        gates: list[list[Connection]],
        on_turn: Callable[[float], None],
        oversubscribed: bool,
    ) -> None:
        """Worlds are numbered as in `updates` and `gates`; a world of independent copies has a gate for each.

        `on_turn` receives the done fraction of all turns. Their order alternates.
        """
        self._turn_seconds = OVERSUBSCRIBED_TURN_SECONDS if oversubscribed else TURN_SECONDS
        self._lead_seconds = OVERSUBSCRIBED_LEAD_SECONDS if oversubscribed else LEAD_SECONDS
        self._updates, self._gates, self._on_turn = updates, gates, on_turn
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
        plans = self._plans()
        for turn in range(plans[0].turns):
            self._on_turn(turn / plans[0].turns)
            for world in reversed(worlds) if turn % 2 else worlds:
                self._grant(world, plans[world])
                yield world
        self._on_turn(1.0)
        for world in worlds:
            self._grant(world, None)

    def _grant(self, world: int, message: Plan | None) -> None:
        for gate in self._gates[world]:
            gate.send(message)

    def _plans(self) -> list[Plan]:
        """As many turns for all as give the slowest world's the wanted length, and the fastest one's half of it."""
        steps = [seconds for seconds in self._step_seconds if seconds is not None]
        if len(steps) < len(self._updates):
            return [IN_ONE_PIECE] * len(self._updates)  # there was no warm-up to tell
        whole = [updates * seconds for updates, seconds in zip(self._updates, steps, strict=True)]
        most = min(math.ceil(max(whole) / self._turn_seconds), int(min(whole) / (LEAST_TURN * self._turn_seconds)))
        turns = max(1, min(*self._updates, most))
        return [Plan(turns, round(self._lead_seconds / seconds)) for seconds in steps]
