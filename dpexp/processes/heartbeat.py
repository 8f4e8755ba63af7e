"""Heartbeats: where each worker is, in memory that its parent can still read when the worker hangs or is dead."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import mmap
import os
import signal
from collections.abc import Iterator
from typing import Any

from dpexp.processes.descriptors import Descriptor
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

CELL_BYTES = 8


class Heartbeat:
    """One process's stage, the steps it has finished in that stage, and the phase of its current step.

    Each value is a word of its own. A reader may see one change before another; it never sees half of one.
    """

    def __init__(self, memory: bytearray | mmap.mmap | None = None) -> None:
        self.move_to(memory or bytearray(4 * CELL_BYTES))

    def move_to(self, memory: bytearray | mmap.mmap) -> None:
        """It is in this memory from now on."""
        self._cells = memoryview(memory).cast("q")

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


class Monitor:
    """One worker's heartbeat and its stacks, in memory that its parent shares with it when it starts."""

    def __init__(self, file: Descriptor | None = None) -> None:
        if file is None:
            file = Descriptor(os.memfd_create("dpexp"))  # not in /dev/shm, so its size limit doesn't apply
            os.ftruncate(file.number, mmap.PAGESIZE)
            os.lseek(file.number, 0, os.SEEK_END)  # in all processes: where stacks are written, behind the heartbeat
        self._file = file
        self._memory = mmap.mmap(file.number, mmap.PAGESIZE)
        self.heartbeat = Heartbeat(self._memory)

    def __reduce__(self) -> tuple[Any, ...]:
        return Monitor, (self._file,)

    def publish(self) -> None:
        """In the worker: from now on its heartbeat is seen, and its stacks when it crashes, or is asked for them."""
        faulthandler.enable(self._file.number)
        faulthandler.register(signal.SIGUSR1, self._file.number)
        heartbeat.move_to(self._memory)

    def stacks(self) -> str:
        """The Python stacks that the worker has written, of all its threads; "" for none."""
        size = os.fstat(self._file.number).st_size
        return os.pread(self._file.number, size - mmap.PAGESIZE, mmap.PAGESIZE).decode(errors="replace")

    def ask_for_stacks(self, process: int) -> None:
        """Have the worker with this number of a process write them, a stopped one, too, which then goes on."""
        with contextlib.suppress(ProcessLookupError):
            # To the main thread, which has the number of its process: it shows where it stopped before it goes on.
            if (tgkill := getattr(ctypes.CDLL(None), "tgkill", None)) is not None:
                tgkill(process, process, signal.SIGUSR1)
            else:  # before glibc 2.30
                os.kill(process, signal.SIGUSR1)
            os.kill(process, signal.SIGCONT)

    def close(self) -> None:
        """Close the parent's descriptor."""
        self._file.close()
