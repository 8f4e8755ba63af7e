"""The processes of one measured command: started, let train in turns while others sleep, and ended together."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

import dpexp.clock
from dpexp.clock.messages import Turn
from dpexp.errors import ConfigError, ScriptEnded, WorkerError, counted
from dpexp.launchers import command_output as output
from dpexp.launchers import descendants
from dpexp.machine.exclusive import VARIABLE as LOCK
from dpexp.processes.waiting import wait_until

STARTUP = Path(dpexp.clock.__file__).parent / "startup"
SOCKET = "DPEXP_SCRIPT_SOCKET"
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
MOST_LINES = 40  # of each file, in an error's details
EXIT_SECONDS = 10.0  # a launcher may take so long to end after one of its processes

Trace = tuple[float, float, float, list[tuple[float, float]]]
"""Of a step: seconds of data, compute and update; and of each meeting with others, the arrival and its seconds."""


@dataclass(frozen=True)
class Command:
    """What to start: `copies` times the same words, each with `ranks` processes that train together."""

    name: str  # in errors
    words: list[str]
    ranks: int
    copies: int
    threads: int  # of each process, unless the command sets its own
    global_batch_size: int  # samples of a step of all copies together
    output: Path  # files whose names begin so receive what the processes write


@dataclass
class Rank:
    """One process that trains."""

    connection: Connection
    number: int  # among all of its world, those of other copies included
    threads: int
    startup_seconds: float
    made: int | None = None  # steps in all, once it has come to its end
    facts: dict[str, Any] = field(default_factory=dict)  # about its model, known when the last turn is over


class World:
    """A command that runs. Its processes sleep, but in their turn."""

    def __init__(self, command: Command, mark: str, timeout_seconds: float) -> None:
        self.command = command
        self.ranks: list[Rank] = []  # by number, when none is missing
        self.traces: list[list[list[Trace]]] = []  # of each traced turn, process and step
        self.files: set[str] = set()  # of the user's, that its processes depend on
        self.cpu_seconds = 0.0  # of all processes, helpers such as the workers of data loaders, too; known then
        self._timeout_seconds, self._mark = timeout_seconds, mark
        self._descendants = descendants.Descendants(mark)
        self._roots: list[subprocess.Popen[bytes]] = []
        self._steps = 0  # that were reported so far

    def start(self, address: str) -> None:
        """Start all copies. Raises ConfigError where there is no such program."""
        self._started = time.monotonic()
        for copy in range(self.command.copies):
            environment = os.environ | dict.fromkeys(THREADS, str(self.command.threads))
            environment |= {LOCK: ""}  # a dpexp in there would wait for this one
            environment |= {SOCKET: address, descendants.NAME: f"{self._mark}{copy}"}
            # "python" and "torchrun" are those of the environment in which dpexp runs, active or not.
            for name, first in (("PYTHONPATH", STARTUP), ("PATH", Path(sys.executable).parent)):
                environment[name] = os.pathsep.join(filter(None, [str(first), os.environ.get(name)]))
            with self._file(copy, "out").open("wb") as out, self._file(copy, "err").open("wb") as errors:
                files: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": errors}
                try:
                    root = subprocess.Popen(self.command.words, env=environment, start_new_session=True, **files)
                except OSError as error:
                    raise ConfigError(
                        f"script.command: {self.command.words[0]}: {error.strerror}; name a program that can be "
                        f"started from {Path.cwd()}"
                    ) from error
            self._roots.append(root)

    @property
    def missing(self) -> int:
        """How many of its processes have not made their first step."""
        return self.command.ranks * self.command.copies - len(self.ranks)

    def introduce(self, connection: Connection, copy: int, introduction: dict[str, Any]) -> None:
        """One of its processes has made its first step. Raises WorkerError when it is not what was asked for."""
        rank, world_size = introduction["rank"], introduction["world_size"]
        if world_size != self.command.ranks:
            raise WorkerError(
                f"{self.command.name}: the command trains in a world of {counted(world_size, 'process')}, not "
                f"{self.command.ranks}: its number of processes must follow {{workers}}"
            )
        number = copy * self.command.ranks + rank
        if any(one.number == number for one in self.ranks):
            raise WorkerError(f"{self.command.name}: several processes say that they are rank {rank}")
        self.files |= {*introduction["files"]}
        self.ranks.append(Rank(connection, number, introduction["threads"], time.monotonic() - self._started))
        if not self.missing:
            self.ranks.sort(key=lambda one: one.number)
            self._steps = 1
            self._sleep()

    def check_start(self) -> None:
        """Raise WorkerError when it has ended before all its processes made their first step."""
        if self.missing and self._ended():
            raise self._failure(f"{_how(self._wait_for_end())} before a torch optimizer had made a step")

    def turn(self, turn: Turn) -> list[float]:
        """Let it make some steps; the wall seconds of each timed one by its slowest process, of copies the means.

        None of a traced turn, whose hooks take time. Raises WorkerError, ScriptEnded.
        """
        reports = self._ask((turn.lead_steps, turn.steps, turn.traced))
        self._sleep()
        self._steps += turn.steps
        if turn.traced:
            self.traces.append([trace[turn.lead_steps :] for _, trace in reports])
            return []
        seconds = np.diff([times for times, _ in reports])[:, turn.lead_steps :]
        copies = np.split(seconds, self.command.copies)
        return np.mean([max(copy, key=np.sum) for copy in copies], axis=0).tolist()  # type: ignore[no-any-return]

    def finish(self) -> None:
        """The last turn is over: ask for what only the processes know; some may have ended."""
        with contextlib.suppress(ScriptEnded, WorkerError):
            for rank, facts in zip(self.ranks, self._ask("fingerprint"), strict=True):
                rank.facts = facts
        self._sleep()
        self.cpu_seconds += self._descendants.cpu_seconds()

    def ask_to_end(self) -> None:
        """Send SIGTERM to all processes."""
        if self._roots:
            self._descendants.refresh()
            self._descendants.send(signal.SIGTERM)
            self._descendants.send(signal.SIGCONT)

    def end(self) -> None:
        """End all processes, and wait until they are gone."""
        if self._roots:
            self._descendants.end()
        for root in self._roots:
            root.kill()  # if it had wiped its environment
            root.wait()
        for rank in self.ranks:
            rank.connection.close()

    def no_progress(self) -> WorkerError:
        """The error when it has made no step for too long."""
        where = f"after {counted(self._steps, 'step')} or more"
        if self.missing:
            processes = counted(self.command.ranks * self.command.copies, "process")
            where = f"({self.missing} of {processes} have not made their first)"
        return self._failure(
            f"no step for {self._timeout_seconds:g} s {where}; if it is only slow, increase launch.timeout_seconds"
        )

    def _uneven(self, missing: Iterable[Rank]) -> WorkerError:
        names = ", ".join(str(rank.number) for rank in missing)
        return self._failure(
            f"other ranks have made {counted(self._steps, 'step')} and those of a turn, rank {names} has not for "
            f"{self._timeout_seconds:g} s: ranks that make different numbers of steps, as under Join, can't be "
            "measured; give all the same number of batches"
        )

    def _sleep(self) -> None:
        """Stop all processes, helpers too."""
        self._descendants.refresh()
        self._descendants.send(signal.SIGSTOP)

    def _ask(self, question: Any) -> list[Any]:
        """Let it go on; what each process answers, by number. Raises WorkerError, ScriptEnded."""
        waiting = {rank.connection: rank for rank in self.ranks}
        answers: dict[int, Any] = {}

        def receive(end: Connection) -> None:
            message = end.recv()
            rank = waiting.pop(end)
            if isinstance(message, int):
                rank.made = message
                raise EOFError
            answers[rank.number] = message

        self._descendants.send(signal.SIGCONT)
        try:
            for end in waiting:
                end.send(question)
            answered = wait_until(
                lambda: not waiting, self._timeout_seconds, lambda: waiting, receive, lambda: len(waiting)
            )
        except (EOFError, OSError):  # one has ended, perhaps while it slept
            raise self._lost() from None
        if not answered:
            raise self._uneven(waiting.values()) if answers else self.no_progress()
        return [answers[rank.number] for rank in self.ranks]

    def _lost(self) -> Exception:
        """What to raise when a process has come to its end."""
        statuses = self._wait_for_end()
        for rank in self.ranks:
            with contextlib.suppress(EOFError, OSError):
                while rank.made is None and rank.connection.poll():
                    message = rank.connection.recv()
                    rank.made = message if isinstance(message, int) else None
        together = len({rank.made for rank in self.ranks}) == 1
        if statuses and not any(statuses) and together:
            return ScriptEnded(self.command.name)
        how = _how(statuses) if statuses else "others go on"
        if together:
            return self._failure(f"{how} after {counted(self._steps, 'step')} or more")
        made, first = min((rank.made, rank.number) for rank in self.ranks if rank.made is not None)
        return self._failure(
            f"rank {first} came to its end after {counted(made, 'step')}, before the others ({how}); give all "
            "the same number of batches"
        )

    def _ended(self) -> list[int]:
        """The exit statuses of copies that have ended."""
        return [root.returncode for root in self._roots if root.poll() is not None]

    def _wait_for_end(self) -> list[int]:
        """A process has ended: the exit statuses of the copies that end in turn within some seconds."""
        before = os.times()
        wait_until(lambda: len(self._ended()) == len(self._roots), EXIT_SECONDS)
        now = os.times()
        self.cpu_seconds += now.children_user + now.children_system - before.children_user - before.children_system
        return self._ended()

    def _failure(self, what: str) -> WorkerError:
        """The error, with what the command wrote last."""
        files = [self._file(copy, kind) for copy in range(self.command.copies) for kind in ("err", "out")]
        lines = {file: output.last_lines(file) for file in files}
        line = next(filter(None, map(output.cause, lines.values())), "it wrote nothing")
        if "address already in use" in line.lower():
            line += "; write {port} where the command has a port: each has another one"
        details = "\n".join(f"{file}:\n" + "\n".join(own[-MOST_LINES:]) for file, own in lines.items())
        return WorkerError(f"{self.command.name}: {what}: {line}", details)

    def _file(self, copy: int, kind: str) -> Path:
        number = f"-{copy}" if self.command.copies > 1 else ""
        return self.command.output.with_name(f"{self.command.output.name}{number}.{kind}")


def _how(statuses: Sequence[int]) -> str:
    status = next((status for status in statuses if status), 0)
    return f"it was killed by signal {-status}" if status < 0 else f"it exited with status {status}"
