"""The launcher of other people's commands: their processes take turns, as ours do."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection

from dpexp.launchers import descendants
from dpexp.launchers.command_world import Command, World
from dpexp.machine import signals
from dpexp.processes.waiting import wait_until


@contextlib.contextmanager
def started(commands: Mapping[str, Command], timeout_seconds: float) -> Iterator[dict[str, World]]:
    """Within, all commands run, and wait at the end of their first step.

    However this ends, no process that it started outlives it. Raises WorkerError, and ConfigError where a program can't
    be started.
    """
    signals.check()
    token = f"dpexp-{secrets.token_hex(8)}"
    marks = {name: f"{token}.{number}." for number, name in enumerate(commands)}
    worlds = {name: World(command, marks[name], timeout_seconds) for name, command in commands.items()}
    with signals.postponed(), guard(token), socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{token}")  # it has no file, and so can't leave one behind
        listener.listen(128)
        try:
            for world in worlds.values():
                world.start(token)
            _wait_for_first_steps(list(worlds.values()), listener, timeout_seconds)
            yield worlds
        finally:
            for world in worlds.values():
                world.ask_to_end()  # all at once, before waiting for each
            for world in worlds.values():
                world.end()


def _wait_for_first_steps(worlds: Sequence[World], listener: socket.socket, timeout_seconds: float) -> None:
    """Until each process of each command waits at the end of its first step. Raises WorkerError."""

    def introduce(listener: socket.socket) -> None:
        end = _accept(listener)
        if end is not None and signals.wait([end], timeout_seconds):
            with contextlib.suppress(EOFError, OSError):  # it has died, as its command's end will tell
                introduction = end.recv()
                _, number, copy = introduction["world"].split(".")
                worlds[int(number)].introduce(end, int(copy), introduction)

    def missing() -> list[int]:
        for world in worlds:
            world.check_start()
        return [world.missing for world in worlds]

    if not wait_until(lambda: not any(missing()), timeout_seconds, lambda: [listener], introduce, missing):
        raise next(world for world in worlds if world.missing).no_progress()


def _accept(listener: socket.socket) -> Connection | None:
    """The next connection; None where it is another user's."""
    end, _ = listener.accept()
    credentials = end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    if struct.unpack("3i", credentials)[1] != os.getuid():
        end.close()
        return None
    return Connection(end.detach())


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
