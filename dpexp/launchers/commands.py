"""The launcher of other people's commands: their processes take turns, as ours do."""

from __future__ import annotations

import contextlib
import itertools
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dpexp.clock.messages import Turn
from dpexp.errors import ScriptEnded, WorkerError
from dpexp.launchers.command_stage import Interrupted, Stage
from dpexp.launchers.command_world import Command, Rank, World, guard, listen
from dpexp.processes import signals

Trace = tuple[float, float, float, list[tuple[float, float]]]
"""Of a step: seconds of data, compute and update; and of each meeting with others, the arrival and its seconds."""


@dataclass(frozen=True)
class Last:
    """What is known of a command when its last turn is over."""

    ranks: list[Rank]
    traces: list[list[list[Trace]]]  # of each traced turn, process and step
    answers: list[dict[str, Any]]  # of each process; empty where it has ended
    cpu_seconds: float  # of all processes, helpers included


@dataclass
class Commands:
    """Commands that run, by name: one trains, the others are stopped."""

    stage: Stage
    worlds: dict[str, World]
    traces: dict[str, list[list[list[Trace]]]] = field(default_factory=dict)

    def turn(self, name: str, turn: Turn) -> list[float]:
        """Let one make some steps; the wall seconds of each timed one by its slowest process, of copies the means.

        None of a traced turn, whose hooks take time. Raises WorkerError, ScriptEnded.
        """
        world = self.worlds[name]
        reports = self.stage.turn(world, turn)
        if turn.traced:
            self.traces.setdefault(name, []).append([trace[turn.lead_steps :] for _, trace in reports])
            return []
        steps = [_differences(times)[turn.lead_steps :] for times, _ in reports]
        copies = [
            max(steps[first : first + world.command.ranks], key=sum)
            for first in range(0, len(steps), world.command.ranks)
        ]
        return np.mean(copies, axis=0).tolist()  # type: ignore[no-any-return]

    def last(self, name: str) -> Last:
        """Ask for what only the processes know; some may have ended."""
        world = self.worlds[name]
        ranks = [world.ranks[number] for number in sorted(world.ranks)]
        answers: list[dict[str, Any]] = [{}] * len(ranks)
        with contextlib.suppress(ScriptEnded, OSError, WorkerError):
            answers = self.stage.ask(world, "fingerprint")
        world.sleep()
        return Last(
            ranks, self.traces.get(name, []), answers, world.descendants.cpu_seconds() + world.ended_cpu_seconds
        )


@contextlib.contextmanager
def started(commands: Mapping[str, Command], timeout_seconds: float) -> Iterator[Commands]:
    """Within, all commands run, and wait at the end of their first step.

    However this ends, no process that it started outlives it. Raises WorkerError, and ConfigError where a program can't
    be started.
    """
    signals.check()
    token = f"dpexp-{secrets.token_hex(8)}"
    with signals.postponed() as pending, guard(token), contextlib.closing(listen(token)) as listener:
        worlds = {name: World(command, f"{token}.{number}.") for number, (name, command) in enumerate(commands.items())}
        stage = Stage(list(worlds.values()), listener, pending, timeout_seconds)
        try:
            for world in worlds.values():
                world.start(token)
            stage.wait_for_first_steps()
            yield Commands(stage, worlds)
            return
        except Interrupted:
            pass
        finally:
            for world in worlds.values():
                world.end()
    raise WorkerError("interrupted")  # by a signal whose handler didn't raise


def _differences(times: Sequence[float]) -> list[float]:
    return [later - earlier for earlier, later in itertools.pairwise(times)]
