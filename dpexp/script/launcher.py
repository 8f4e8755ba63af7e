"""The launcher of other people's commands: their processes take turns, as ours do."""

from __future__ import annotations

import contextlib
import itertools
import secrets
import socket
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection
from typing import Any

from dpexp.errors import WorkerError
from dpexp.machine.processor import busy_seconds
from dpexp.processes import signals
from dpexp.script.turns import kinds, plan
from dpexp.script.world import Command, Rank, World, accept, guard, listen
from dpexp.words import counted

FIRST_STEPS = 3  # of the warm-up, to learn how long a step takes
WARMUP_SECONDS = 1.0  # of the rest of it, at most
POLL_SECONDS = 0.2

Trace = tuple[float, float, float, list[tuple[float, float]]]
"""Of a step: seconds of data, compute and update; and of each meeting with others, the arrival and its seconds."""


@dataclass
class Measured:
    """What one command did in its turns, by the number of each process."""

    ranks: list[Rank] = field(default_factory=list)
    step_seconds: list[list[list[float]]] = field(default_factory=list)  # of each turn that counts, process and step
    turn_seconds: list[float] = field(default_factory=list)  # of the slowest process in each of these
    traces: list[list[list[Trace]]] = field(default_factory=list)  # of each traced turn, process and step
    traced_step_seconds: list[float] = field(default_factory=list)  # of rank 0
    turn_samples: int = 0
    warmup_seconds: float = 0.0
    cpu_seconds: list[float] = field(default_factory=list)  # of each process, the first with those of all helpers
    parameters_sha256: str = ""  # of rank 0's, at the end of its last turn


class _Ended(Exception):  # noqa: N818 - it is no error
    """A script has come to its end."""


def run_in_turns(
    commands: Mapping[str, Command],
    warmup_steps: int,
    training_seconds: float,
    traced: bool,
    timeout_seconds: float,
    on_turn: Callable[[float], None],
) -> dict[str, Measured]:
    """Start all commands; let them take turns in this order, and back, for `training_seconds` of the slowest; end them.

    `on_turn` receives the done fraction. However this call ends, no process that it started outlives it. Raises
    WorkerError, and ConfigError where a program can't be started.
    """
    signals.check()
    token = f"dpexp-{secrets.token_hex(8)}"
    with signals.postponed() as pending, guard(token), contextlib.closing(listen(token)) as listener:
        worlds = [World(command, f"{token}.{number}.") for number, command in enumerate(commands.values())]
        stage = _Stage(worlds, listener, pending, timeout_seconds)
        try:
            for world in worlds:
                world.start(token)
            found = stage.perform(warmup_steps, training_seconds, traced, on_turn)
        except _Interrupted:
            found = None
        finally:
            busy = busy_seconds()
            for world in worlds:
                world.end()
    if found is None:
        raise WorkerError("interrupted")  # by a signal whose handler didn't raise
    found[0].cpu_seconds[0] += busy_seconds() - busy  # to end takes them time, too
    return dict(zip(commands, found, strict=True))


class _Interrupted(Exception):  # noqa: N818
    """A signal asks for an end."""


class _Stage:
    """All commands of a block: one trains, the others sleep."""

    def __init__(
        self, worlds: Sequence[World], listener: socket.socket, pending: signals.Pending, timeout_seconds: float
    ) -> None:
        self._worlds, self._listener, self._pending = worlds, listener, pending
        self._timeout_seconds = timeout_seconds

    def perform(
        self, warmup_steps: int, training_seconds: float, traced: bool, on_turn: Callable[[float], None]
    ) -> list[Measured]:
        """All of it, from the first steps on."""
        self._wait_for_first_steps()
        found = [Measured([world.ranks[number] for number in sorted(world.ranks)]) for world in self._worlds]
        step_seconds = []
        for world, measured in zip(self._worlds, found, strict=True):
            try:
                seconds, measured.warmup_seconds = self._warm_up(world, warmup_steps)
            except _Ended:
                raise _too_short(world) from None
            step_seconds.append(seconds)
        planned = plan(step_seconds, [world.command.global_batch_size for world in self._worlds], training_seconds)
        turns = kinds(planned.turns, traced)
        numbers = range(len(self._worlds))
        try:
            for turn, is_traced in enumerate(turns):
                on_turn(turn / len(turns))
                reports = {}
                for number in reversed(numbers) if turn % 2 else numbers:
                    lead, timed = planned.lead_steps[number], planned.timed_steps[number]
                    reports[number] = self._turn(self._worlds[number], lead + timed, lead, is_traced)
                for number in numbers:  # a turn counts when all have had it
                    _keep(found[number], reports[number], planned.lead_steps[number])
        except _Ended:
            if not all(measured.turn_seconds for measured in found):
                raise _too_short(self._worlds[0]) from None
        on_turn(1.0)
        for number, (world, measured) in enumerate(zip(self._worlds, found, strict=True)):
            measured.turn_samples = planned.timed_steps[number] * world.command.global_batch_size
            self._take_leave(world, measured)
        return found

    def _wait_for_first_steps(self) -> None:
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

    def _warm_up(self, world: World, steps: int) -> tuple[float, float]:
        """The seconds of a step at the end of the warm-up, and of the warm-up."""
        first = self._seconds_of_steps(world, FIRST_STEPS)
        more = max(0, min(steps - FIRST_STEPS, round(WARMUP_SECONDS / first[-1])))
        rest = self._seconds_of_steps(world, more) if more else []
        return statistics.median([*first[1:], *rest][-max(1, (more + 2) // 2) :]), sum(first) + sum(rest)

    def _seconds_of_steps(self, world: World, steps: int) -> list[float]:
        times, _ = self._turn(world, steps, 0, False)[0]
        return _differences(times)

    def _turn(self, world: World, steps: int, lead: int, traced: bool) -> list[tuple[list[float], Any]]:
        """Let a command make so many steps; the times and the trace of each process. Raises _Ended."""
        world.wake()
        try:
            for rank in world.ranks.values():
                rank.connection.send((lead, steps, traced))
            reports = self._replies(world)
        except OSError:  # it has died while it slept
            raise self._lost(world, {}) from None
        world.sleep()
        for rank in world.ranks.values():
            rank.steps += steps
        return reports

    def _replies(self, world: World) -> list[Any]:
        """What each process of a command sends next, by its number. Raises _Ended."""
        replies: dict[int, Any] = {}
        deadline = time.monotonic() + self._timeout_seconds
        while len(replies) < len(world.ranks):
            waiting = {rank.connection: rank for rank in world.ranks.values() if rank.number not in replies}
            for end in connection.wait([self._pending.reader, *waiting], POLL_SECONDS):
                if rank := waiting.get(end):  # type: ignore[call-overload]
                    try:
                        message = rank.connection.recv()
                    except (EOFError, OSError):
                        raise self._lost(world, replies) from None
                    if isinstance(message, int):
                        rank.made = message
                        raise self._lost(world, replies)
                    replies[rank.number] = message
            self._check_interrupted()
            for other in self._worlds:
                if other is not world and other.ended():
                    raise _ended_early(other, other.wait_for_end())
            if time.monotonic() > deadline:
                raise self._no_progress(world)
        return [replies[number] for number in sorted(replies)]

    def _lost(self, world: World, replies: Mapping[int, Any]) -> Exception:
        """What to raise when a process has come to its end; `replies` are those that other processes have sent."""
        ranks = world.ranks.values()
        if replies and any(rank.made is not None for rank in ranks):
            return _uneven(world)  # the others would wait for us forever
        statuses = world.wait_for_end()
        for rank in ranks:
            with contextlib.suppress(EOFError, OSError):
                if rank.made is None and rank.connection.poll() and isinstance(message := rank.connection.recv(), int):
                    rank.made = message
        made = {rank.made for rank in ranks}
        if statuses and not any(statuses) and len(made) == 1:
            return _Ended()
        if made != {None}:
            return _uneven(world)
        steps = f"after {counted(world.ranks[0].steps, 'step')} or more"
        return world.failure(f"{_how(statuses)} {steps}" if statuses else f"a process that trains ended {steps}")

    def _take_leave(self, world: World, measured: Measured) -> None:
        """Ask for what only the processes know; some may have ended."""
        world.wake()
        with contextlib.suppress(_Ended, OSError, WorkerError):
            for rank in world.ranks.values():
                rank.connection.send("fingerprint")
            replies = self._replies(world)
            measured.parameters_sha256 = replies[0][0]
            measured.cpu_seconds = [cpu_seconds for _, cpu_seconds in replies]
        world.sleep()
        helpers = max(0.0, world.descendants.cpu_seconds() - sum(measured.cpu_seconds))
        measured.cpu_seconds = measured.cpu_seconds or [0.0] * len(measured.ranks)
        measured.cpu_seconds[0] += helpers

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
        if self._pending.received:
            raise _Interrupted


def _keep(measured: Measured, reports: Sequence[tuple[list[float], Any]], lead: int) -> None:
    """Add the turn of one command."""
    if reports[0][1] is not None:
        measured.traces.append([trace[lead:] for _, trace in reports])
        measured.traced_step_seconds += _differences(reports[0][0])[lead:]
        return
    measured.step_seconds.append([_differences(times)[lead:] for times, _ in reports])
    measured.turn_seconds.append(max(times[-1] - times[lead] for times, _ in reports))


def _differences(times: Sequence[float]) -> list[float]:
    return [later - earlier for earlier, later in itertools.pairwise(times)]


def _ended_early(world: World, statuses: Sequence[int]) -> WorkerError:
    steps = min((rank.steps for rank in world.ranks.values()), default=0)
    if steps:
        return world.failure(f"{_how(statuses)} after {counted(steps, 'step')}")
    return world.failure(f"{_how(statuses)} before a torch optimizer had made a step")


def _uneven(world: World) -> WorkerError:
    ended = next(rank for rank in world.ranks.values() if rank.made is not None)
    return WorkerError(
        f"{world.command.name}: its processes make different numbers of steps: rank {ended.number} came to its end "
        f"after {ended.made:,}, others go on; give all the same number of batches"
    )


def _too_short(world: World) -> WorkerError:
    return WorkerError(
        f"{world.command.name}: the script came to its end before it could be measured; let it train for more steps, "
        "or set measurement.warmup_steps lower"
    )


def _how(statuses: Sequence[int]) -> str:
    status = next((status for status in statuses if status), 0)
    return f"it was killed by signal {-status}" if status < 0 else f"it exited with status {status}"
