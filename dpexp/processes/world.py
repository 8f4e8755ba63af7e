"""The processes of one training: started, named in errors, and ended together."""

import contextlib
import ctypes
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil

from dpexp.errors import WorkerError
from dpexp.machine import cgroups
from dpexp.processes.fork_server import Target, start_process
from dpexp.processes.heartbeat import STACKS_SIGNAL, HeartbeatMemory


@dataclass(frozen=True)
class RemoteRanks:
    """The ranks of a world that other launching processes start; by default, there are none."""

    first_local_rank: int = 0  # the first rank that this launch starts
    sync_progress: Callable[[Any], Any] = lambda local: None
    """Takes the local heartbeats; its value changes as remote ranks progress. Raises WorkerError if one failed."""
    reports: Callable[[], list[Any] | None] = list  # those that follow the local ones; None until all are there


@dataclass(frozen=True)
class WorldSpec:
    """What to start: `target` in one process for each entry of `arguments`."""

    target: Target
    arguments: list[tuple[Any, ...]]
    name: str = ""  # its name in errors, before the rank
    remote: RemoteRanks = RemoteRanks()


class WorkerProcess:
    """One process of a world, as its parent sees it."""

    def __init__(self, spec: WorldSpec, world: int, number: int) -> None:
        """Start process `number` of world `world`. Raises OSError, WorkerError."""
        self.world = world
        self.notices: list[Any] = []
        self.report: Any = None
        rank = spec.remote.first_local_rank + number
        self.name = f"{spec.name}{': ' if spec.name else ''}rank {rank}"  # in errors
        self._memory_kills = cgroups.memory_kills()
        self._monitor = HeartbeatMemory()
        self.heartbeat, self.stacks = self._monitor.heartbeat, self._monitor.stacks
        self._process, self.pipe = start_process(spec.target, rank, spec.arguments[number], self._monitor)
        self.pid = self._process.pid or 0

    def kill(self) -> None:
        """End the process at once, if it is still alive."""
        if self._process.exitcode is None:
            self._process.kill()

    def close(self) -> None:
        """Reap the process, and release its resources."""
        self._process.join()
        self._process.close()
        self.pipe.close()
        self._monitor.close()

    def death_error(self) -> WorkerError:
        """Return the error for a process that has closed its pipe without a report."""
        self._process.join(timeout=1)
        code = self._process.exitcode
        if code is None:
            ending = "closed its connection without a report"
        elif code < 0:
            ending = f"was killed by {signal.Signals(-code).name}"
        else:
            ending = f"exited with status {code} without a report"
        lost_server = 255  # multiprocessing's exit code if it missed the end
        if code in (-signal.SIGKILL, lost_server) and cgroups.memory_kills() > self._memory_kills:
            ending += f", probably out of memory ({_describe_memory()})"
        return WorkerError(f"{self.name} {ending}, {self.heartbeat}", self.stacks())

    def is_stopped(self) -> bool:
        """Whether a signal has stopped it."""
        try:
            return psutil.Process(self.pid).status() == psutil.STATUS_STOPPED
        except psutil.Error:
            return False

    def ask_for_stacks(self) -> None:
        """Ask the process for its stacks, and continue it if it was stopped."""
        if self._process.exitcode is None:
            # To the main thread, whose id is the pid, so that the stack shows where it was stopped.
            tgkill = getattr(ctypes.CDLL(None), "tgkill", lambda _, thread, number: os.kill(thread, number))
            with contextlib.suppress(ProcessLookupError):
                tgkill(self.pid, self.pid, STACKS_SIGNAL)
                os.kill(self.pid, signal.SIGCONT)


def _describe_memory() -> str:
    machine = f"the machine has {psutil.virtual_memory().total / 2**30:.0f} GiB"
    limits = [limit for limit, _ in cgroups.memory_limits()]
    return f"the cgroup allows {min(limits) / 2**20:,.0f} MiB; {machine}" if limits else machine
