"""The processes of one measured command on one machine: started, put to sleep, and ended together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dpexp.clock
from dpexp.errors import ConfigError, PeerError, WorkerError
from dpexp.launchers import command_output as output
from dpexp.launchers import descendants
from dpexp.machine.exclusive import VARIABLE as LOCK
from dpexp.processes.waiting import wait_until

STARTUP = Path(dpexp.clock.__file__).parent / "startup"
SOCKET = "DPEXP_SCRIPT_SOCKET"
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# Where dpexp is a rank itself, one on each host, these are its own.
OWN = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_", "SLURM_PROCID", "SLURM_NTASKS")
MOST_LINES = 40  # of each file, in an error's details
EXIT_SECONDS = 10.0  # a launcher may take so long to end after one of its processes


@dataclass(frozen=True)
class Command:
    """What to start: `copies` times the same words, each with `ranks` processes that train together."""

    name: str  # in errors
    words: list[list[str]]  # of each host's command, of which each has as many of the ranks
    ranks: int
    copies: int
    threads: int  # of each process, unless the command sets its own
    global_batch_size: int  # samples of a step of all copies together


class CommandProcesses:
    """All processes of a command on this machine, by a mark in their environment."""

    def __init__(self, command: Command, host: int, files: Path, mark: str) -> None:
        """`files`: names that begin so receive what the processes write."""
        self._command, self._host, self._files, self._mark = command, host, files, mark
        self._descendants = descendants.Descendants(mark)
        self._roots: list[subprocess.Popen[bytes]] = []
        self.cpu_seconds = 0.0  # of all processes, helpers such as the workers of data loaders, too; known at the end

    def start(self, address: str) -> None:
        """Start all copies, which report to `address`. Raises ConfigError where there is no such program."""
        words, own = self._command.words[self._host], OWN if {"RANK", "WORLD_SIZE"} <= os.environ.keys() else ()
        for copy in range(self._command.copies):
            environment = {name: value for name, value in os.environ.items() if not name.startswith(own)}
            environment |= dict.fromkeys(THREADS, str(self._command.threads))
            environment |= {LOCK: ""}  # a dpexp in there would wait for this one
            environment |= {SOCKET: address, descendants.NAME: f"{self._mark}{copy}"}
            # "python" and "torchrun" are those of the environment in which dpexp runs, active or not.
            for name, first in (("PYTHONPATH", STARTUP), ("PATH", Path(sys.executable).parent)):
                environment[name] = os.pathsep.join(filter(None, [str(first), os.environ.get(name)]))
            with self._file(copy, "out").open("wb") as out, self._file(copy, "err").open("wb") as errors:
                files: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": errors}
                try:
                    root = subprocess.Popen(words, env=environment, start_new_session=True, **files)
                except OSError as error:
                    raise ConfigError(
                        f"script.command: {words[0]}: {error.strerror}; name a program that can be started from "
                        f"{Path.cwd()}"
                    ) from error
            self._roots.append(root)

    def stop(self) -> None:
        """All sleep until `go_on`, helpers too."""
        self._descendants.refresh()
        self._descendants.send(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let those that were stopped go on."""
        self._descendants.send(signal.SIGCONT)

    def count_cpu_seconds(self) -> None:
        """Of those that were stopped last."""
        self.cpu_seconds += self._descendants.cpu_seconds()

    def ask_to_end(self) -> None:
        """Send SIGTERM to all."""
        if self._roots:
            self._descendants.refresh()
            self._descendants.send(signal.SIGTERM)
            self._descendants.send(signal.SIGCONT)

    def end(self) -> None:
        """End all, and wait until they are gone."""
        if self._roots:
            self._descendants.end()
        for root in self._roots:
            root.kill()  # if it had wiped its environment
            root.wait()

    def statuses(self) -> list[int]:
        """The exit statuses of the copies that have ended."""
        return [root.returncode for root in self._roots if root.poll() is not None]

    def wait_for_end(self) -> list[int]:
        """A process has ended: the exit statuses of the copies that end in turn within some seconds."""
        before = os.times()
        wait_until(lambda: len(self.statuses()) == len(self._roots), EXIT_SECONDS)
        now = os.times()
        self.cpu_seconds += now.children_user + now.children_system - before.children_user - before.children_system
        return self.statuses()

    def failure(self, what: str) -> WorkerError:
        """The error, with what the command wrote last; a PeerError where another host must know the cause."""
        files = [self._file(copy, kind) for copy in range(self._command.copies) for kind in ("err", "out")]
        lines = {file: output.last_lines(file) for file in files}
        line = next(filter(None, map(output.cause, lines.values())), "it wrote nothing")
        if "address already in use" in line.lower():
            line += "; write {port} where the command has a port: each has another one"
        details = "\n".join(f"{file}:\n" + "\n".join(own[-MOST_LINES:]) for file, own in lines.items())
        kind = PeerError if len(self._command.words) > 1 and output.lost_peer(line) else WorkerError
        return kind(f"{self._command.name}: {what}: {line}", details)

    def _file(self, copy: int, kind: str) -> Path:
        number = f"-{copy}" if self._command.copies > 1 else ""
        return self._files.with_name(f"{self._files.name}{number}.{kind}")


def how_ended(statuses: Sequence[int]) -> str:
    """In words."""
    status = next((status for status in statuses if status), 0)
    return f"it was killed by signal {-status}" if status < 0 else f"it exited with status {status}"
