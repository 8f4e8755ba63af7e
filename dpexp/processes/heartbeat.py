"""Heartbeats: each worker's progress, in memory that its parent can read even if the worker hangs or is dead."""

import contextlib
import faulthandler
import mmap
import os
import signal
from collections.abc import Iterator
from typing import Any

from dpexp.phases import PHASES
from dpexp.processes.descriptors import Descriptor

STAGES = ("starting", "warming up", "waiting for its turn", "training", "finishing", "evaluating", "reporting")
STACKS_SIGNAL = signal.SIGUSR1
STARTING, WARMING_UP, WAITING, TRAINING, FINISHING, EVALUATING, REPORTING = range(len(STAGES))


class Heartbeat:
    """One process's stage, the steps it has finished in that stage, and the phase of its current step.

    Each value is a separate machine word. A reader may see one change before another; it never sees half of one.
    """

    def __init__(self, memory: mmap.mmap | None = None) -> None:
        self.cells = memoryview(memory or bytearray(mmap.PAGESIZE)).cast("q")

    def begin_stage(self, stage: int) -> None:
        """Begin a stage."""
        self.cells[1] = self.cells[2] = 0
        self.cells[0] = stage
        self.cells[3] += 1

    @contextlib.contextmanager
    def nested_stage(self, stage: int) -> Iterator[None]:
        """Interrupt the current stage with another one while the context is open."""
        interrupted = self.cells[:3].tolist()
        self.begin_stage(stage)
        yield  # no `finally`: after an error, the stage still says where it happened
        self.cells[3] += 1
        self.cells[0], self.cells[1], self.cells[2] = interrupted

    def begin_phase(self, phase: int) -> None:
        """Begin a phase of a step."""
        self.cells[2] = phase

    def end_step(self) -> None:
        """Complete a step; the next one begins with its first phase."""
        self.cells[2] = 0
        self.cells[1] += 1

    def state(self) -> tuple[int, ...]:
        """Return values that change whenever the process makes progress."""
        return tuple(self.cells[:4])

    def __str__(self) -> str:
        stage, steps, phase, _ = self.state()
        if stage in (WARMING_UP, TRAINING):
            return f"while {STAGES[stage]}, in step {steps + 1}, phase {PHASES[phase]}"
        return f"while {STAGES[stage]}"


heartbeat = Heartbeat()  # the heartbeat of this process


class HeartbeatMemory:
    """One worker's heartbeat and stacks, in memory that it shares with its parent."""

    def __init__(self, file: Descriptor | None = None) -> None:
        if file is None:
            file = Descriptor(os.memfd_create("dpexp"))  # not in /dev/shm, so its size limit doesn't apply
            os.ftruncate(file.fd, mmap.PAGESIZE)
            os.lseek(file.fd, 0, os.SEEK_END)  # in all processes: where stacks are written, behind the heartbeat
        self._file = file
        self.heartbeat = Heartbeat(mmap.mmap(file.fd, mmap.PAGESIZE))

    def __reduce__(self) -> tuple[Any, ...]:
        return HeartbeatMemory, (self._file,)

    def publish(self) -> None:
        """In the worker, publish its heartbeat from now on, and its stacks if it crashes or is asked for them."""
        faulthandler.enable(self._file.fd)
        faulthandler.register(STACKS_SIGNAL, self._file.fd)
        heartbeat.cells = self.heartbeat.cells

    def stacks(self) -> str:
        """Return the Python stacks of all threads that the worker has written; "" for none."""
        size = os.fstat(self._file.fd).st_size
        return os.pread(self._file.fd, size - mmap.PAGESIZE, mmap.PAGESIZE).decode(errors="replace")

    def close(self) -> None:
        """Close the parent's descriptor."""
        self._file.close()
