"""The rounds of one block: each arm has a turn of 30 to 120 milliseconds, while the others sleep."""

import random
import statistics
import time
from collections.abc import Callable, Sequence

from dpexp.errors import ScriptEnded
from dpexp.measurement.trainer import ArmSteps, Pace, RunningArms
from dpexp.processes.turn import Turn

MIN_WARMUP_STEPS = 2  # to learn how long a step takes
WARMUP_SECONDS = 0.5  # after which no more warm-up steps are made
LONG_STEP_RATIO = 10  # if a step is at least this many times untimed_seconds, no untimed steps are needed
JITTER = 0.25  # random change of a turn's length: turns must not synchronize with what an arm does every n steps
MIN_ROUNDS = 2


class Rounds:
    """The steps of one block so far."""

    def __init__(self, pace: Pace, names: Sequence[str], seed: int) -> None:
        """The first round has this order of arms, the next one the reverse, and so on."""
        self.timed = {name: ArmSteps() for name in names}
        self.timed_rounds = 0  # those that count
        self._pace, self._names = pace, names
        self._randomly = random.Random(seed)  # noqa: S311 - no secret
        self._number = 0

    def warm_up(self, running: RunningArms, steps: int) -> None:
        """Make `steps` untimed steps with each arm, fewer if they are long, and learn how long a step takes.

        The first step may be much longer than the others, for example if it compiles the model.
        """
        for name, timed in self.timed.items():
            running.run_turn(name, Turn(0, 1, warmup=True))
            (second,) = running.run_turn(name, Turn(0, 1, warmup=True))
            more = min(steps - MIN_WARMUP_STEPS, int(WARMUP_SECONDS / second) - 1)
            others = [second, *(running.run_turn(name, Turn(0, more, warmup=True)) if more > 0 else [])]
            timed.steps = 1 + len(others)
            timed.min_step_seconds = min(others)
            timed.step_seconds = statistics.median(others[len(others) // 2 :])

    @property
    def step_seconds(self) -> float:
        """The expected seconds of one step of each arm, all together."""
        return sum(timed.step_seconds for timed in self.timed.values())

    @property
    def round_seconds(self) -> float:
        """The expected seconds of one round."""
        turn_seconds = self._pace.untimed_seconds + self._pace.turn_seconds
        return sum(max(turn_seconds, timed.step_seconds) for timed in self.timed.values())

    def run_round(self, running: RunningArms) -> None:
        """Make one round; it doesn't count if a script ends in it. Raises WorkerError, ScriptEnded."""
        self._number += 1
        interval = self._pace.traced_every
        # With this remainder, even the shortest block has a traced round.
        traced = interval is not None and self._number % interval == interval // 2
        names = self._names if self.timed_rounds % 2 == 0 else self._names[::-1]
        turns = {name: self._turn(self.timed[name], traced) for name in names}
        seconds = {name: running.run_turn(name, turn) for name, turn in turns.items()}
        for name, turn in turns.items():
            timed = self.timed[name]
            if not traced:
                timed.turns.append(seconds[name])
                timed.first_steps.append(timed.steps + turn.untimed_steps)
            timed.steps += turn.steps
        self.timed_rounds += not traced

    def run_until(self, running: RunningArms, is_enough: Callable[[float], bool]) -> None:
        """Make rounds until `is_enough`, which receives the seconds so far, or until a script ends."""
        started = time.monotonic()
        while self.timed_rounds < MIN_ROUNDS or not is_enough(time.monotonic() - started):
            try:
                self.run_round(running)
            except ScriptEnded:
                if not self.timed_rounds:
                    raise
                return

    def _turn(self, arm: ArmSteps, traced: bool) -> Turn:
        pace, step = self._pace, arm.step_seconds
        timed = pace.turn_seconds / step * self._randomly.uniform(1 - JITTER, 1 + JITTER)
        untimed = 0 if step >= LONG_STEP_RATIO * pace.untimed_seconds else round(pace.untimed_seconds / step)
        return Turn(max(untimed, pace.min_untimed_steps), max(1, round(timed)), traced)
