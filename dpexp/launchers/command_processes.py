"""The processes of one measured command on one machine: started, put to sleep, and ended together."""

import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpexp.errors import ConfigError, PeerError, WorkerError
from dpexp.launchers import command_output as output
from dpexp.launchers import process_tree
from dpexp.launchers.process_tree import GRACE_SECONDS, ProcessTree
from dpexp.machine.environment import THREAD_VARIABLES
from dpexp.machine.measurement_lock import LOCK_VARIABLE
from dpexp.machine.memory import peak_bytes
from dpexp.processes.watchdog import wait_until

SCRIPT_HOOK = Path(__file__).parent / "script_hook"
PACKAGES = Path(__file__).parents[2]  # the folder that contains dpexp
ADDRESS, EXCHANGE = "DPEXP_SCRIPT_SOCKET", "DPEXP_SCRIPT_EXCHANGE"
# If dpexp itself is a rank (one per host), these variables describe that rank; its commands must not inherit them.
OWN_RANK = re.compile(
    "((LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)|SLURM_(PROCID|NTASKS)"
    "|(TORCHELASTIC|OMPI_COMM_WORLD|PMI)_.*)"
)
MAX_LINES = 40  # from the end of each file, in an error's details
EXIT_SECONDS = 10.0  # a launcher may take this long to end after one of its processes


@dataclass(frozen=True)
class CommandSpec:
    """A command to start, and how its processes train."""

    name: str  # its name in errors
    words: list[list[str]]  # the command of each host, which starts an equal share of the ranks
    ranks: int  # processes that train together
    threads: int  # threads of each process, unless the command sets them
    global_batch_size: int
    exchange: str | None = None  # how gradients are exchanged, if not as the script does


class CommandProcesses(ProcessTree):
    """All processes of a command on this machine, found by a mark in their environment."""

    def __init__(self, command: CommandSpec, host: int, files: Path, mark: str) -> None:
        """The output of the processes is written to `files`, with the endings .err and .out."""
        super().__init__(mark)
        self._command, self._host = command, host
        self._files = [files.with_name(f"{files.name}.{kind}") for kind in ("err", "out")]
        self._root: subprocess.Popen[bytes] | None = None
        self.memory_bytes: int | None = None  # peak memory of all processes together; None: not measured
        self.used_cpu_seconds = 0.0  # CPU time of all processes, helpers such as loaders included; known at the end

    def start(self, address: str) -> None:
        """Start the command, whose processes report to `address`. Raises ConfigError if there is no such program."""
        words, is_rank = self._command.words[self._host], {"RANK", "WORLD_SIZE"} <= os.environ.keys()
        environment = {name: value for name, value in os.environ.items() if not (is_rank and OWN_RANK.fullmatch(name))}
        environment |= dict.fromkeys(THREAD_VARIABLES, str(self._command.threads))
        environment |= {LOCK_VARIABLE: ""}  # a dpexp started by the command must not wait for this one
        environment |= {ADDRESS: address, process_tree.MARK_VARIABLE: self.mark}
        # "python" and "torchrun" are those of the environment in which dpexp runs, active or not.
        for name, first in (("PYTHONPATH", SCRIPT_HOOK), ("PATH", Path(sys.executable).parent)):
            environment[name] = os.pathsep.join(filter(None, [str(first), os.environ.get(name)]))
        if self._command.exchange is not None:  # so that the script imports this dpexp
            environment[EXCHANGE] = str(PACKAGES)
        with self._files[0].open("wb") as errors, self._files[1].open("wb") as out:
            files: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": errors}
            try:
                self._root = subprocess.Popen(words, env=environment, start_new_session=True, **files)
            except OSError as error:
                raise ConfigError(
                    f"script.command: {words[0]}: {error.strerror}; name a program that can be started from "
                    f"{Path.cwd()}"
                ) from error

    def pause(self) -> None:
        """Stop all processes, including helpers, until they receive SIGCONT."""
        self.refresh()
        self.send(signal.SIGSTOP)

    def record_memory(self) -> None:
        """Read the memory of the stopped processes."""
        now = peak_bytes(self.processes)
        self.memory_bytes = self.memory_bytes if now is None else max(now, self.memory_bytes or 0)

    def ask_to_end(self) -> None:
        """Send SIGTERM to all processes."""
        if self._root is not None:
            super().ask_to_end()

    def end(self, grace_seconds: float = GRACE_SECONDS) -> None:
        """End all processes, and wait until they are gone."""
        if self._root is not None:
            super().end(grace_seconds)
            self._root.kill()  # if it had wiped its environment
            self._root.wait()

    @property
    def status(self) -> int | None:
        """The exit status of the command; None while it runs."""
        return None if self._root is None else self._root.poll()

    def wait_for_end(self) -> int | None:
        """Return the exit status if the command ends within some seconds after one of its processes, else None."""
        before = os.times()
        wait_until(lambda: self.status is not None, EXIT_SECONDS)
        now = os.times()
        self.used_cpu_seconds += now.children_user + now.children_system - before.children_user - before.children_system
        return self.status

    def failure(self, reason: str) -> WorkerError:
        """Return the error with the last output of the command; a PeerError if another host knows the cause."""
        lines = {file: output.last_lines(file) for file in self._files}
        line = next(filter(None, map(output.cause, lines.values())), "it wrote nothing")
        if "address already in use" in line.lower():
            line += "; write {port} where the command has a port: dpexp fills in a different one for each command"
        details = "\n".join(f"{file}:\n" + "\n".join(texts[-MAX_LINES:]) for file, texts in lines.items())
        kind = PeerError if len(self._command.words) > 1 and output.lost_peer(line) else WorkerError
        return kind(f"{self._command.name}: {reason}: {line}", details)


def describe_exit(status: int | None) -> str:
    """Describe how a command ended."""
    if status is None:
        return "a process ended, but the command kept running (torchrun --max-restarts restarts its workers)"
    return f"it was killed by signal {-status}" if status < 0 else f"it exited with status {status}"
