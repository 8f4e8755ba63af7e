"""The turns of measured commands: how long they are, and which steps are timed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Of the slowest command's turn, and of the untimed steps at its beginning: data loaders and libraries of any kind wake
# up there, so that both are longer than in trainings of our loop.
TURN_SECONDS, LEAD_SECONDS = 0.06, 0.01
LEAST_STEPS, LEAST_TURNS = 3, 6
TRACED_EVERY = 4  # turns, of which the last is traced and doesn't count


@dataclass(frozen=True)
class Plan:
    """Equal turns for all: each trains on as many samples, after some untimed steps."""

    turns: int  # that count
    lead_steps: list[int]  # of each command
    timed_steps: list[int]


def plan(step_seconds: Sequence[float], batches: Sequence[int], training_seconds: float) -> Plan:
    """From the seconds of a step of each command, and its samples; the slowest is timed for `training_seconds`."""
    unit = math.lcm(*batches)
    steps = [unit // batch for batch in batches]
    longest = max(seconds * count for seconds, count in zip(step_seconds, steps, strict=True))
    times = max(math.ceil(TURN_SECONDS / longest), math.ceil(LEAST_STEPS / min(steps)))
    return Plan(
        turns=max(LEAST_TURNS, math.ceil(training_seconds / (times * longest))),
        lead_steps=[max(1, round(LEAD_SECONDS / seconds)) for seconds in step_seconds],
        timed_steps=[times * count for count in steps],
    )


def kinds(turns: int, traced: bool) -> list[bool]:
    """Of each turn whether it is traced; `turns` of them count."""
    found: list[bool] = []
    while found.count(False) < turns:
        found.append(traced and len(found) % TRACED_EVERY == TRACED_EVERY - 1)
    return found
