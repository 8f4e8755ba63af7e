"""The clock of the built-in training loop: for a whole training, or for a segment of steps in turns."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from dpexp.processes.heartbeat import TRAINING, WAITING, heartbeat
from dpexp.processes.turn import Turn
from dpexp.train.strategies import Strategy

IDLE_POLL_SECONDS, MAX_IDLE_SECONDS = 1e-3, 0.05
END = [0, 0, 0]  # what rank 0 broadcasts at the end of a segment: a turn without steps


class TrainingClock:
    """The clock of a whole training: its seconds without pauses."""

    def __init__(self, strategy: Strategy) -> None:
        self._strategy = strategy
        self._started = 0.0
        self.seconds = 0.0

    def epochs(self, configured: int) -> Iterable[int]:
        """Return the numbers of the epochs to train; the clock starts with the first."""
        heartbeat.begin_stage(TRAINING)
        self.resume()
        return range(configured)

    def batches(self, batches: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Return the batches of an epoch to train on; its first step comes next."""
        return batches

    def end_step(self) -> bool:
        """Count a step that has ended; return whether the training goes on."""
        return True

    def pause(self) -> None:
        """Stop the clock."""
        self.seconds += time.perf_counter() - self._started

    def resume(self) -> None:
        """Start the clock when all ranks do."""
        self._strategy.barrier()
        self._started = time.perf_counter()


class SegmentClock(TrainingClock):
    """The clock of steps in turns. All ranks make the same steps; rank 0 waits for each turn at its `turn_pipe`."""

    def __init__(self, strategy: Strategy, turn_pipe: Connection | None, notify: Callable[[Any], None]) -> None:
        """The strategy's recorder is on in timed steps."""
        super().__init__(strategy)
        self.between_epochs_seconds: list[float] = []  # before each epoch: what belongs to no step
        self._turn_pipe, self._notify = turn_pipe, notify
        self._seconds: list[float] = []  # seconds of each step of this turn
        self._steps_left = self._timed_steps = self._warmup = 0  # of this turn; the last: whether it is warm-up
        self._last = 0.0  # the end of the step before

    def epochs(self, configured: int) -> Iterable[int]:
        """Yield the epochs of the training, repeated as often as needed."""
        heartbeat.begin_stage(TRAINING)
        if not self._take_turn():
            return
        while True:  # until end_step says that no turn is left
            yield from range(configured)
            self._strategy.reset()
            self._last = time.perf_counter()

    def batches(self, batches: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Return whole batches only: the time of a training is that of its samples."""
        now = time.perf_counter()
        self.between_epochs_seconds.append(now - self._last)
        self._last = now
        self._strategy.recorder.start()
        return batches if len(batches[-1]) == len(batches[0]) else batches[:-1]

    def end_step(self) -> bool:
        """Time a step that has ended; return whether there is another, in this turn or in the next, after a sleep."""
        self._steps_left -= 1
        now = time.perf_counter()
        self._seconds.append(now - self._last)
        self._last = now
        if self._steps_left == self._timed_steps:
            self._start_recording()
        return self._steps_left > 0 or self._take_turn()

    def _take_turn(self) -> bool:
        """Report the last turn and sleep until the next one; return whether there is one."""
        self._strategy.recorder.is_on = False
        numbers = END
        with heartbeat.nested_stage(WAITING):
            if torch.get_num_threads() > 1:
                _wait_until_idle()  # a spinning thread would disturb the next arm
            if self._turn_pipe is not None:
                self._notify(self._seconds[len(self._seconds) - self._timed_steps :])
                turn: Turn | None = self._turn_pipe.recv()
                numbers = END if turn is None else [turn.steps, turn.timed_steps, turn.warmup]
            # The other ranks sleep here.
            self._steps_left, self._timed_steps, self._warmup = self._strategy.broadcast(numbers)
        self._seconds = []
        self._last = time.perf_counter()
        if self._steps_left == self._timed_steps:
            self._start_recording()
        return self._steps_left > 0

    def _start_recording(self) -> None:
        self._strategy.recorder.is_on = not self._warmup
        self._strategy.recorder.start()


def _wait_until_idle() -> None:
    """Return when all other threads sleep, or after MAX_IDLE_SECONDS: a library's pool spins after its last work."""
    deadline = time.monotonic() + MAX_IDLE_SECONDS
    while time.monotonic() < deadline and _any_running():
        time.sleep(IDLE_POLL_SECONDS)


def _any_running() -> bool:
    this = str(threading.get_native_id())
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has just ended
            if task.name != this and (task / "stat").read_text().rpartition(") ")[2].startswith("R"):
                return True
    return False
