"""The commands of a block while they run: one trains, the others sleep; and what to say when one of them fails."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Sequence
from multiprocessing import connection
from typing import Any

from dpexp.clock.messages import Turn
from dpexp.errors import ScriptEnded, WorkerError, counted
from dpexp.launchers.command_world import World, accept
from dpexp.processes import signals

POLL_SECONDS = 0.2
PATIENCE = 3.0  # times the expected seconds of a turn, beyond the timeout


class Interrupted(Exception):  # noqa: N818
    """A signal asks for an end."""


class Stage:
    """Lets commands train, one at a time."""

    def __init__(
        self, worlds: Sequence[World], listener: socket.socket, pending: signals.Pending, timeout_seconds: float
    ) -> None:
        self._worlds, self._listener, self._pending = worlds, listener, pending
        self._timeout_seconds = timeout_seconds

    def wait_for_first_steps(self) -> None:
        """Until each process of each command waits at the end of its first step."""
        arriving: list[connection.Connection] = []
        deadline = time.monotonic() + self._timeout_seconds
        while not all(world.is_complete for world in self._worlds):
            for end in connection.wait([self._listener, self._pending.reader, *arriving], POLL_SECONDS):
                if end is self._listener:
                    assert isinstance(end, socket.socket)
                    new = accept(end)
                    arriving += [] if new is None else [new]
                elif end in arriving:
                    deadline = time.monotonic() + self._timeout_seconds
                    assert isinstance(end, connection.Connection)
                    arriving.remove(end)
                    with contextlib.suppress(EOFError, OSError):  # it has died, as its command's end will tell
                        self._introduce(end, end.recv())
            self._check_interrupted()
            for world in self._worlds:
                if not world.is_complete and world.ended():
                    raise _ended_early(world, world.wait_for_end())
            if time.monotonic() > deadline:
                raise self._no_progress(next(world for world in self._worlds if not world.is_complete))

    def _introduce(self, end: connection.Connection, introduction: dict[str, Any]) -> None:
        _, number, copy = introduction["world"].split(".")
        world = self._worlds[int(number)]
        world.introduce(end, int(copy), introduction)
        if world.is_complete:
            world.sleep()

    def turn(self, world: World, turn: Turn) -> list[tuple[list[float], Any]]:
        """Let a command make some steps; the times and the trace of each process. Raises ScriptEnded."""
        world.wake()
        started = time.monotonic()
        try:
            for rank in world.ranks.values():
                rank.connection.send((turn.lead_steps, turn.steps, turn.traced))
            reports = self._replies(world, patience=PATIENCE * turn.steps * world.step_seconds)
        except OSError:  # it has died while it slept
            raise self._lost(world) from None
        world.sleep()
        world.step_seconds = (time.monotonic() - started) / turn.steps
        for rank in world.ranks.values():
            rank.steps += turn.steps
        return reports

    def ask(self, world: World, question: str) -> list[Any]:
        """What each process of a sleeping command answers, by its number. Raises ScriptEnded."""
        world.wake()
        for rank in world.ranks.values():
            rank.connection.send(question)
        return self._replies(world, alone=True)

    def _replies(self, world: World, alone: bool = False, patience: float = 0.0) -> list[Any]:
        """What each process of a command sends next, by number; `alone`, others may have ended. Raises ScriptEnded."""
        replies: dict[int, Any] = {}
        deadline = time.monotonic() + self._timeout_seconds + patience
        while len(replies) < len(world.ranks):
            waiting = {rank.connection: rank for rank in world.ranks.values() if rank.number not in replies}
            for end in connection.wait([self._pending.reader, *waiting], POLL_SECONDS):
                if rank := waiting.get(end):  # type: ignore[call-overload]
                    try:
                        message = rank.connection.recv()
                    except (EOFError, OSError):
                        raise self._lost(world) from None
                    if isinstance(message, int):
                        rank.made = message
                        raise self._lost(world)
                    replies[rank.number] = message
            self._check_interrupted()
            for other in self._worlds:
                if other is not world and not alone and other.ended():
                    raise _ended_early(other, other.wait_for_end())
            if time.monotonic() > deadline:
                raise self._no_progress(world)
        return [replies[number] for number in sorted(replies)]

    def _lost(self, world: World) -> Exception:
        """What to raise when a process has come to its end."""
        statuses = world.wait_for_end()
        for rank in world.ranks.values():
            with contextlib.suppress(EOFError, OSError):
                while rank.made is None and rank.connection.poll():
                    message = rank.connection.recv()
                    rank.made = message if isinstance(message, int) else None
        made = {rank.number: rank.made for rank in world.ranks.values()}
        together = len(set(made.values())) == 1
        if statuses and not any(statuses) and together:
            return ScriptEnded(world.command.name)
        how = _how(statuses) if statuses else "others go on"
        if together:
            return world.failure(f"{how} after {counted(world.ranks[0].steps, 'step')} or more")
        first = min((steps, number) for number, steps in made.items() if steps is not None)
        return world.failure(
            f"rank {first[1]} came to its end after {counted(first[0], 'step')}, before the others ({how}); give all "
            "the same number of batches"
        )

    def _no_progress(self, world: World) -> WorkerError:
        steps = min((rank.steps for rank in world.ranks.values()), default=0)
        missing = world.command.ranks * world.command.copies - len(world.ranks)
        where = f"after {counted(steps, 'step')} or more"
        if missing:
            where = f"({missing} of {counted(len(world.ranks) + missing, 'process')} have not made their first)"
        return world.failure(
            f"no step for {self._timeout_seconds:g} s {where}; if it is only slow, increase launch.timeout_seconds"
        )

    def _check_interrupted(self) -> None:
        self._pending.drain()
        if self._pending.received:
            raise Interrupted


def _ended_early(world: World, statuses: Sequence[int]) -> WorkerError:
    steps = min((rank.steps for rank in world.ranks.values()), default=0)
    if steps:
        return world.failure(f"{_how(statuses)} after {counted(steps, 'step')}")
    return world.failure(f"{_how(statuses)} before a torch optimizer had made a step")


def _how(statuses: Sequence[int]) -> str:
    status = next((status for status in statuses if status), 0)
    return f"it was killed by signal {-status}" if status < 0 else f"it exited with status {status}"
