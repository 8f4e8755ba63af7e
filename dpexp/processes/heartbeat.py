"""Heartbeats: where each worker is, in memory that its parent can still read when the worker hangs or is dead."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import mmap
import os
import signal
import time
from collections.abc import Iterator, Sequence
from multiprocessing import reduction
from typing import Any

from dpexp.machine.files import anonymous_file
from dpexp.results.phases import DATA, PHASES

STAGES = (
    "starting",
    "warming up",
    "waiting for its turn",
    "training",
    "finishing its training",
    "evaluating",
    "reporting",
)
STARTING, WARMING_UP, WAITING, TRAINING, FINISHING, EVALUATING, REPORTING = range(len(STAGES))

CELLS = 8  # of 8 bytes: a cache line, so that workers don't disturb each other
STACK_SECONDS, STACK_POLL_SECONDS = 3.0, 0.05


class Heartbeat:
    """One process's stage, the steps it has finished in that stage, and the phase of its current step.

    Each value is a word of its own. A reader may see one change before another; it never sees half of one.
    """

    def __init__(self, cells: memoryview | None = None) -> None:
        self._cells = memoryview(bytearray(8 * CELLS)).cast("q") if cells is None else cells

    def share(self, cells: memoryview) -> None:
        """Write into these cells from now on."""
        self._cells = cells

    def enter(self, stage: int) -> None:
        """A stage begins."""
        self._cells[1] = self._cells[2] = 0
        self._cells[0] = stage
        self._cells[3] += 1

    @contextlib.contextmanager
    def within(self, stage: int) -> Iterator[None]:
        """A stage that interrupts another one."""
        interrupted = self._cells[:3].tolist()
        self.enter(stage)
        yield
        self._cells[3] += 1
        self._cells[0], self._cells[1], self._cells[2] = interrupted

    def phase(self, phase: int) -> None:
        """A phase of a step begins."""
        self._cells[2] = phase

    def step(self) -> None:
        """A step is complete, and the next one begins with its data."""
        self._cells[2] = DATA
        self._cells[1] += 1

    @property
    def steps(self) -> int:
        """Steps finished in the current stage."""
        return int(self._cells[1])

    def state(self) -> tuple[int, ...]:
        """Changes whenever the process makes progress."""
        return tuple(self._cells[:4])

    def __str__(self) -> str:
        stage, steps, phase, _ = self.state()
        if stage in (WARMING_UP, TRAINING):
            return f"while {STAGES[stage]}, in step {steps + 1}, phase {PHASES[phase]}"
        return f"while {STAGES[stage]}"


heartbeat = Heartbeat()  # of this process


class Slot:
    """What a worker receives to publish its heartbeat, and its stacks on request."""

    def __init__(self, cells: int, stacks: int, number: int) -> None:
        self._cells, self._stacks, self._number = cells, stacks, number

    def take(self) -> None:
        """In the worker. From now on its stacks are written when it crashes, and on SIGUSR1 even if it hangs."""
        faulthandler.enable(self._stacks)
        faulthandler.register(signal.SIGUSR1, self._stacks)
        cells = memoryview(mmap.mmap(self._cells, 0)).cast("q")
        os.close(self._cells)
        heartbeat.share(cells[self._number * CELLS : (self._number + 1) * CELLS])

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (reduction.DupFd(self._cells), reduction.DupFd(self._stacks), self._number)


def _rebuild(cells: Any, stacks: Any, number: int) -> Slot:
    return Slot(cells.detach(), stacks.detach(), number)


def _signal_main_thread(process: int, number: int) -> None:
    """Where this is possible (Linux): a stopped process then shows where it stopped, before it does anything else."""
    tgkill = getattr(ctypes.CDLL(None), "tgkill", None)
    if tgkill is None:
        os.kill(process, number)
    else:
        tgkill(process, process, number)  # the main thread has the number of its process


class Monitor:
    """In the parent: the heartbeats and stacks of all workers of one launch."""

    def __init__(self, workers: int) -> None:
        self._descriptors: list[int] = []
        try:
            self._descriptors.append(anonymous_file())
            os.ftruncate(self._descriptors[0], workers * CELLS * 8)
            self._cells = memoryview(mmap.mmap(self._descriptors[0], 0)).cast("q")
            for _ in range(workers):
                self._descriptors.append(anonymous_file())
        except OSError:
            self.close()
            raise
        self.heartbeats = [Heartbeat(self._cells[at * CELLS : (at + 1) * CELLS]) for at in range(workers)]
        self.slots = [Slot(self._descriptors[0], stacks, at) for at, stacks in enumerate(self._descriptors[1:])]

    def state(self) -> list[tuple[int, ...]]:
        """Changes whenever any worker makes progress."""
        return [worker.state() for worker in self.heartbeats]

    def stacks(self) -> list[str]:
        """The Python stacks that each worker has written, of all its threads; "" for none."""
        return [os.pread(file, os.fstat(file).st_size, 0).decode(errors="replace") for file in self._descriptors[1:]]

    def ask_for_stacks(self, processes: Sequence[int | None]) -> list[str]:
        """Have these processes write their stacks, stopped ones too; wait until they have, or for some seconds."""
        for process in processes:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if process is not None:
                    _signal_main_thread(process, signal.SIGUSR1)
                    os.kill(process, signal.SIGCONT)
        deadline = time.monotonic() + STACK_SECONDS
        seen: list[str] = []
        asked = [number for number, process in enumerate(processes) if process is not None]
        while time.monotonic() < deadline and (not seen or seen != self.stacks() or not all(seen[at] for at in asked)):
            seen = self.stacks()
            time.sleep(STACK_POLL_SECONDS)
        return self.stacks()

    def close(self) -> None:
        """Close the parent's descriptors."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = []
