"""The launcher of other people's commands: their processes take turns, as ours do."""

from __future__ import annotations

import contextlib
import itertools
import secrets
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dpexp.errors import WorkerError
from dpexp.machine.processor import busy_seconds
from dpexp.processes import signals
from dpexp.script.stage import Ended, Interrupted, Stage
from dpexp.script.turns import kinds, plan
from dpexp.script.world import Command, Rank, World, guard, listen

LEAST_WARMUP_STEPS = 3  # to learn how long a step takes

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
        stage = Stage(worlds, listener, pending, timeout_seconds)
        found = None
        try:
            for world in worlds:
                world.start(token)
            stage.wait_for_first_steps()
            warmups = [_warm_up(stage, world, warmup_steps) for world in worlds]
            found = _take_turns(stage, worlds, warmups, training_seconds, traced, on_turn)
        except Interrupted:
            pass
        finally:
            busy = busy_seconds()
            for world in worlds:
                world.end()
    if found is None:
        raise WorkerError("interrupted")  # by a signal whose handler didn't raise
    found[0].cpu_seconds[0] += busy_seconds() - busy  # to end takes them time, too
    return dict(zip(commands, found, strict=True))


def _warm_up(stage: Stage, world: World, steps: int) -> list[float]:
    """The seconds of each step of the warm-up. Raises WorkerError where the script is over before."""
    try:
        return _differences(stage.turn(world, max(steps, LEAST_WARMUP_STEPS), 0, False)[0][0])
    except Ended as ended:
        raise _too_short(ended) from None


def _take_turns(
    stage: Stage,
    worlds: Sequence[World],
    warmups: Sequence[Sequence[float]],
    training_seconds: float,
    traced: bool,
    on_turn: Callable[[float], None],
) -> list[Measured]:
    """All turns; fewer, where a script comes to its end. Raises WorkerError."""
    found = [
        Measured([world.ranks[number] for number in sorted(world.ranks)], warmup_seconds=sum(warmup))
        for world, warmup in zip(worlds, warmups, strict=True)
    ]
    step_seconds = [statistics.median(warmup[len(warmup) // 2 :]) for warmup in warmups]
    planned = plan(step_seconds, [world.command.global_batch_size for world in worlds], training_seconds)
    turns, numbers = kinds(planned.turns, traced), range(len(worlds))
    try:
        for turn, is_traced in enumerate(turns):
            on_turn(turn / len(turns))
            reports = {}
            for number in reversed(numbers) if turn % 2 else numbers:
                lead, timed = planned.lead_steps[number], planned.timed_steps[number]
                expected = (lead + timed) * step_seconds[number]
                reports[number] = stage.turn(worlds[number], lead + timed, lead, is_traced, expected)
            for number in numbers:  # a turn counts when all have had it
                _keep(found[number], reports[number], planned.lead_steps[number])
    except Ended as ended:
        if not all(measured.turn_seconds for measured in found):
            raise _too_short(ended) from None
    on_turn(1.0)
    for number, (world, measured) in enumerate(zip(worlds, found, strict=True)):
        measured.turn_samples = planned.timed_steps[number] * world.command.global_batch_size
        _take_leave(stage, world, measured)
    return found


def _keep(measured: Measured, reports: Sequence[tuple[list[float], Any]], lead: int) -> None:
    """Add the turn of one command."""
    if reports[0][1] is not None:
        measured.traces.append([trace[lead:] for _, trace in reports])
        measured.traced_step_seconds += _differences(reports[0][0])[lead:]
        return
    measured.step_seconds.append([_differences(times)[lead:] for times, _ in reports])
    measured.turn_seconds.append(max(times[-1] - times[lead] for times, _ in reports))


def _take_leave(stage: Stage, world: World, measured: Measured) -> None:
    """Ask for what only the processes know; some may have ended."""
    measured.cpu_seconds = [0.0] * len(measured.ranks)
    with contextlib.suppress(Ended, OSError, WorkerError):
        answers = stage.ask(world, "fingerprint")
        measured.parameters_sha256 = answers[0][0]
        measured.cpu_seconds = [cpu_seconds for _, cpu_seconds in answers]
    world.sleep()
    measured.cpu_seconds[0] += max(0.0, world.descendants.cpu_seconds() - sum(measured.cpu_seconds))
    measured.cpu_seconds[0] += world.ended_cpu_seconds


def _differences(times: Sequence[float]) -> list[float]:
    return [later - earlier for earlier, later in itertools.pairwise(times)]


def _too_short(ended: Ended) -> WorkerError:
    return WorkerError(
        f"{ended}: the script came to its end before it could be measured; let it train for more steps, "
        "or set measurement.warmup_steps lower"
    )
