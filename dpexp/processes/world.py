"""The processes of one training: started, named in errors, and ended together."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.context import ForkServerProcess
from typing import Any

import psutil

from dpexp.errors import WorkerError
from dpexp.machine import cgroups
from dpexp.processes.fork_server import Target, start_process, start_server
from dpexp.processes.heartbeat import Monitor


@dataclass(frozen=True)
class RemoteRanks:
    """The ranks of a world that other launching processes start, here or on other machines."""

    first_local_rank: int  # of those that this launch starts
    exchange_progress: Callable[[Any], Any]
    """Takes the local heartbeats; its value changes as remote ranks get on. Raises WorkerError where one has failed."""
    reports: Callable[[], list[Any] | None]  # those that belong behind the local ones; None until all are there


@dataclass(frozen=True)
class WorldSpec:
    """What to start: `target` in one process for each entry of `arguments`."""

    target: Target
    arguments: list[tuple[Any, ...]]
    name: str = ""  # in errors, before the rank
    remote: RemoteRanks | None = None


@dataclass
class World:
    """The local processes of one training, and what is known of them."""

    spec: WorldSpec
    processes: list[ForkServerProcess] = field(default_factory=list)
    pipes: list[connection.Connection] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.monitor = Monitor(len(self.spec.arguments))
        self._memory_kills = cgroups.memory_kills()

    def start(self) -> None:
        """Start every process. Raises OSError, WorkerError."""
        context = start_server()
        for number, arguments in enumerate(self.spec.arguments):
            slot = self.monitor.slots[number]
            process, pipe = start_process(context, self._rank(number), self.spec.target, arguments, slot)
            self.processes.append(process)
            self.pipes.append(pipe)

    def kill(self) -> None:
        """End every process that is still alive, at once."""
        for process in self.processes:
            if process.exitcode is None:
                process.kill()

    def close(self) -> None:
        """Reap the processes, and release what belonged to them."""
        for process in self.processes:
            process.join()
            process.close()
        for pipe in self.pipes:
            pipe.close()
        self.monitor.close()

    def rank_in_words(self, number: int) -> str:
        """The name of one process in an error message."""
        return f"{self.spec.name}{': ' if self.spec.name else ''}rank {self._rank(number)}"

    def death(self, number: int) -> WorkerError:
        """The error for a process that closed its pipe without a report."""
        process = self.processes[number]
        process.join(timeout=1)
        code = process.exitcode
        if code is None:
            how = "closed its connection without a report"
        elif code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        else:
            how = f"exited with status {code} without a report"
        lost_server = 255  # what multiprocessing says when nobody saw the end
        if code in (-signal.SIGKILL, lost_server) and cgroups.memory_kills() > self._memory_kills:
            how += f", probably out of memory ({_memory_in_words()})"
        message = f"{self.rank_in_words(number)} {how}, {self.monitor.heartbeats[number]}"
        return WorkerError(message, self.monitor.stacks()[number])

    def states(self) -> list[str]:
        """Where each process is, in words."""
        return [
            f"{self.rank_in_words(number)} {worker}" + (", stopped by a signal" if self._is_stopped(number) else "")
            for number, worker in enumerate(self.monitor.heartbeats)
        ]

    def ask_for_stacks(self, stopped: bool) -> None:
        """Have the processes write their stacks, those that a signal has stopped or the others."""
        alive = [process.pid if process.exitcode is None else None for process in self.processes]
        wanted = [self._is_stopped(number) == stopped for number in range(len(self.processes))]
        self.monitor.ask_for_stacks([pid if ask else None for pid, ask in zip(alive, wanted, strict=True)])

    def _rank(self, number: int) -> int:
        return number + (0 if self.spec.remote is None else self.spec.remote.first_local_rank)

    def _is_stopped(self, number: int) -> bool:
        try:
            return psutil.Process(self.processes[number].pid).status() == psutil.STATUS_STOPPED
        except psutil.Error:
            return False


def hang(worlds: list[World], seconds: float) -> WorkerError:
    """The error when no process of any world has made progress for `seconds`, with the stacks of all."""
    states = [state for world in worlds for state in world.states()]
    for stopped in (False, True):  # the stopped ones last: asking makes them continue, and others with them
        for world in worlds:
            world.ask_for_stacks(stopped)
    stacks = [stack for world in worlds for stack in world.monitor.stacks()]
    details = [f"{state}:\n{stack or 'wrote no stack'}" for state, stack in zip(states, stacks, strict=True)]
    return WorkerError(
        f"no worker made progress for {seconds:g} s: {'; '.join(states)}; "
        "if they are only slow, increase launch.timeout_seconds",
        "\n".join(details),
    )


def _memory_in_words() -> str:
    machine = f"the machine has {psutil.virtual_memory().total / 2**30:.0f} GiB"
    limit = cgroups.memory_limit_bytes()
    return machine if limit is None else f"the cgroup allows {limit / 2**20:,.0f} MiB; {machine}"
