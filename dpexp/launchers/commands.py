"""The launcher of users' commands: their processes take turns, like built-in workers."""

import contextlib
import os
import secrets
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import connection
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

from dpexp.launchers import process_tree
from dpexp.launchers.command_processes import CommandProcesses, CommandSpec, describe_exit
from dpexp.launchers.running_command import Introduction, RunningCommand
from dpexp.machine import signals
from dpexp.processes.descriptors import is_of_this_user
from dpexp.processes.watchdog import POLL_SECONDS, wait_until

KEEPALIVE = {socket.SO_KEEPALIVE: 1, socket.TCP_KEEPIDLE: 5, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 3}
HANDSHAKE_SECONDS = 5  # for a process on another machine to prove who it is


class Hosts(Protocol):
    """Starts a command's processes on other hosts."""

    count: int  # number of hosts, including this one
    address: str  # of this machine, for the other hosts

    def run_script(self, command: CommandSpec, number: int, address: str) -> contextlib.AbstractContextManager[None]:
        """Run the command on the other hosts while the context is open; its processes report to `address`."""

    def raise_failures(self) -> None:
        """Raise WorkerError if the command has failed on another host."""


@contextlib.contextmanager
def running_commands(
    commands: Mapping[str, CommandSpec], output: Mapping[str, Path], timeout_seconds: float, hosts: Hosts | None = None
) -> Iterator[dict[str, RunningCommand]]:
    """Start all commands, which wait at the end of their first step while the context is open.

    However this ends, no process that it started outlives it. Raises WorkerError, and ConfigError if a program can't be
    started.
    """
    signals.raise_pending()
    mark = f"dpexp-{secrets.token_hex(8)}"
    running, check_hosts = {}, hosts.raise_failures if hosts else lambda: None
    for number, (name, spec) in enumerate(commands.items()):
        processes = CommandProcesses(spec, 0, output[name], f"{mark}.{number:03}")
        running[name] = RunningCommand(spec, processes, timeout_seconds, check_hosts)
    with signals.defer(), contextlib.ExitStack() as cleanup:
        cleanup.enter_context(end_on_parent_death(mark))
        listener = cleanup.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(f"\0{mark}")  # abstract: no file to clean up
        listener.listen(128)
        listeners = {listener: b""}  # with the key that processes on other machines must have
        try:
            for number, command in enumerate(running.values()):
                command.processes.start(mark)
                if hosts is not None and len(command.spec.words) > 1:
                    remote, key = cleanup.enter_context(socket.create_server(("", 0))), secrets.token_hex(16)
                    listeners[remote] = key.encode()
                    address = f"{hosts.address} {remote.getsockname()[1]} {key}"
                    cleanup.enter_context(hosts.run_script(command.spec, number, address))
            _wait_for_first_steps(list(running.values()), listeners, timeout_seconds)
            yield running
        finally:
            for command in running.values():
                command.processes.ask_to_end()  # all at once, before waiting for each
            for command in running.values():
                command.end()


def _wait_for_first_steps(
    running: Sequence[RunningCommand], listeners: Mapping[socket.socket, bytes], timeout_seconds: float
) -> None:
    """Return when each process of each command waits at the end of its first step. Raises WorkerError."""

    def introduce(listener: socket.socket) -> None:
        accepted = _accept(listener, listeners[listener])
        if accepted is not None and wait_until(accepted.poll, timeout_seconds, lambda: [accepted]):
            with contextlib.suppress(EOFError, OSError):  # it died: `check_start` reports that
                introduction: Introduction = accepted.recv()
                number = int(introduction["mark"].split(".")[1])
                running[number].introduce(accepted, introduction, is_remote=bool(listeners[listener]))

    def missing() -> list[int]:
        for command in running:
            command.check_start()
        return [command.missing for command in running]

    if not wait_until(lambda: not any(missing()), timeout_seconds, lambda: listeners, introduce, missing):
        raise next(command for command in running if command.missing).no_progress()


def _accept(listener: socket.socket, key: bytes) -> Connection | None:
    """Return the next connection; None if it is another user's, or comes from a machine without the key."""
    accepted, _ = listener.accept()
    if not key:
        if is_of_this_user(accepted):
            return Connection(accepted.detach())
        accepted.close()
        return None
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", HANDSHAKE_SECONDS, 0))
    accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    remote = Connection(accepted.detach())
    try:
        connection.deliver_challenge(remote, key)
        connection.answer_challenge(remote, key)
    except (OSError, EOFError, connection.AuthenticationError):  # type: ignore[attr-defined]
        remote.close()
        return None
    with socket.socket(fileno=os.dup(remote.fileno())) as options:
        options.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 0))
        for name, value in KEEPALIVE.items():  # else a read would wait forever for a host that is lost
            options.setsockopt(socket.SOL_SOCKET if name == socket.SO_KEEPALIVE else socket.IPPROTO_TCP, name, value)
    return remote


def run_on_host(command: CommandSpec, host: int, number: int, address: str, check: Callable[[], None]) -> None:
    """Run a command's part on this host until `check` raises. Raises WorkerError, ConfigError.

    A PeerError says that only another host can know the cause.
    """
    mark = f"dpexp-{secrets.token_hex(8)}"
    with tempfile.TemporaryDirectory() as folder, signals.defer(), end_on_parent_death(mark):
        processes = CommandProcesses(command, host, Path(folder) / "output", f"{mark}.{number:03}")
        try:
            processes.start(address)
            while not processes.status:  # with status 0, it has come to its end, as the first host reports
                check()
                signals.wait((), POLL_SECONDS)
            raise processes.failure(f"on host {host} {describe_exit(processes.wait_for_end())}")
        finally:
            processes.end()


@contextlib.contextmanager
def end_on_parent_death(mark: str) -> Iterator[None]:
    """Have another process end all processes with this mark if this process dies while the context is open."""
    program = subprocess.Popen(
        [sys.executable, "-I", "-S", process_tree.__file__, mark], stdin=subprocess.PIPE, start_new_session=True
    )
    assert program.stdin is not None
    try:
        yield
    finally:
        program.stdin.close()
        program.wait()
