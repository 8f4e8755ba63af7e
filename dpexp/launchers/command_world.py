"""The processes of one measured command: started, put to sleep, woken up, and ended together."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import dpexp.clock
from dpexp.errors import ConfigError, WorkerError, counted
from dpexp.launchers import command_output as output
from dpexp.launchers import descendants
from dpexp.machine.exclusive import VARIABLE as LOCK

STARTUP = Path(dpexp.clock.__file__).parent / "startup"
SOCKET = "DPEXP_SCRIPT_SOCKET"
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
EXIT_SECONDS, POLL_SECONDS = 10.0, 0.05  # a launcher may take so long to end after one of its processes


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
    steps: int = 1  # that were reported so far
    made: int | None = None  # of a process that has come to its end, in all


@dataclass
class World:
    """A command that runs."""

    command: Command
    mark: str
    roots: list[subprocess.Popen[bytes]] = field(default_factory=list)
    ranks: dict[int, Rank] = field(default_factory=dict)
    step_seconds: float = 0.0  # in the last turn, about
    ended_cpu_seconds: float = 0.0  # of copies that have come to their end, with all that they waited for

    def __post_init__(self) -> None:
        self.descendants = descendants.Descendants(self.mark)

    def start(self, address: str) -> None:
        """Start all copies. Raises ConfigError where there is no such program."""
        self._started = time.monotonic()
        for copy in range(self.command.copies):
            environment = os.environ | dict.fromkeys(THREADS, str(self.command.threads))
            environment |= {LOCK: ""}  # a dpexp in there would wait for this one
            environment |= {SOCKET: address, descendants.NAME: f"{self.mark}{copy}"}
            environment["PYTHONPATH"] = _joined(str(STARTUP), os.environ.get("PYTHONPATH"))
            # "python" and "torchrun" are those of the environment in which dpexp runs, active or not.
            environment["PATH"] = _joined(str(Path(sys.executable).parent), os.environ.get("PATH"))
            with self._file(copy, "out").open("wb") as out, self._file(copy, "err").open("wb") as errors:
                try:
                    root = subprocess.Popen(
                        self.command.words,
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=out,
                        stderr=errors,
                        start_new_session=True,
                    )
                except OSError as error:
                    raise ConfigError(
                        f"script.command: {self.command.words[0]}: {error.strerror}; name a program that can be "
                        f"started from {Path.cwd()}"
                    ) from error
            self.roots.append(root)

    @property
    def is_complete(self) -> bool:
        """Whether all its processes have made their first step."""
        return len(self.ranks) == self.command.ranks * self.command.copies

    def introduce(self, connection: Connection, copy: int, introduction: dict[str, Any]) -> None:
        """One of its processes has made its first step. Raises WorkerError when it is not what was asked for."""
        rank, world_size = introduction["rank"], introduction["world_size"]
        if world_size != self.command.ranks:
            raise WorkerError(
                f"{self.command.name}: the command trains in a world of {counted(world_size, 'process')}, not "
                f"{self.command.ranks}: its number of processes must follow {{workers}}"
            )
        number = copy * self.command.ranks + rank
        if number in self.ranks:
            raise WorkerError(f"{self.command.name}: several processes say that they are rank {rank}")
        seconds = time.monotonic() - self._started
        self.ranks[number] = Rank(connection, number, introduction["threads"], seconds)

    def sleep(self) -> None:
        """Stop all processes, helpers such as the workers of data loaders, too."""
        self.descendants.refresh()
        self.descendants.send(signal.SIGSTOP)

    def wake(self) -> None:
        """Let them go on."""
        self.descendants.send(signal.SIGCONT)

    def ended(self) -> list[int]:
        """The exit statuses of copies that have ended."""
        before = _children_seconds()
        statuses = [root.returncode for root in self.roots if root.poll() is not None]
        self.ended_cpu_seconds += _children_seconds() - before
        return statuses

    def wait_for_end(self) -> list[int]:
        """A process has ended: the exit statuses of the copies that end in turn within some seconds."""
        deadline = time.monotonic() + EXIT_SECONDS
        while len(self.ended()) < len(self.roots) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        return self.ended()

    def failure(self, what: str) -> WorkerError:
        """The error, with what the command wrote last."""
        files = [self._file(copy, kind) for copy in range(self.command.copies) for kind in ("err", "out")]
        line = next((found for file in files if (found := output.last_line(file))), "it wrote nothing")
        details = "\n".join(f"{file}:\n" + "\n".join(output.tail(file)) for file in files)
        return WorkerError(f"{self.command.name}: {what}: {line}", details)

    def end(self) -> None:
        """End all processes, and wait until they are gone."""
        if self.roots:
            self.descendants.end()
        for root in self.roots:
            root.kill()  # if it had wiped its environment
            root.wait()
        for rank in self.ranks.values():
            rank.connection.close()

    def _file(self, copy: int, kind: str) -> Path:
        number = f"-{copy}" if self.command.copies > 1 else ""
        return self.command.output.with_name(f"{self.command.output.name}{number}.{kind}")


def _children_seconds() -> float:
    """CPU time of children of this process that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def _joined(first: str, others: str | None) -> str:
    return first if not others else f"{first}{os.pathsep}{others}"


@contextlib.contextmanager
def guard(mark: str) -> Iterator[None]:
    """Within, another process ends all that bear this mark if this one dies, whatever kills it."""
    program = subprocess.Popen(
        [sys.executable, "-I", "-S", descendants.__file__, mark], stdin=subprocess.PIPE, start_new_session=True
    )
    assert program.stdin is not None
    try:
        yield
    finally:
        program.stdin.close()
        program.wait()


def listen(address: str) -> socket.socket:
    """A socket that has no file, and so can't leave one behind (Linux)."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"\0{address}")
    listener.listen(128)
    return listener


def accept(listener: socket.socket) -> Connection | None:
    """The next connection; None where it is another user's."""
    end, _ = listener.accept()
    credentials = end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    if struct.unpack("3i", credentials)[1] != os.getuid():
        end.close()
        return None
    return Connection(end.detach())
