"""What can be done to a worker, or by it to the main process, at a place of its life. Workers import this."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dpexp.phases import DATA, PHASES
from dpexp.processes import heartbeat
from dpexp.processes.heartbeat import STAGES, STARTING, TRAINING, WARMING_UP
from dpexp.train import worker

STEPS = {WARMING_UP: 2, TRAINING: 10}  # of the tiny job's whole training; a segment has no warm-up, and more steps


@dataclass(frozen=True)
class Place:
    """A moment in a worker's life; steps and visits count from 1, the phase only where there are steps."""

    stage: int
    phase: int = DATA
    step: int = 1
    visit: int = 1  # to this moment: of a segment, each wait for a turn is one

    def __str__(self) -> str:
        if self.stage in STEPS:
            return f"while {STAGES[self.stage]}, in step {self.step}, phase {PHASES[self.phase]}"
        return f"while {STAGES[self.stage]}"


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_server() -> None:
    os.kill(os.getppid(), signal.SIGKILL)
    stop()


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def spin() -> None:
    while True:
        pass


def make_slow_progress(rank: int, seconds: float, notify: Any) -> None:
    """What a worker does that is slow, but no hang: a step after the other for so long."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        heartbeat.heartbeat.end_step()


def use_cpu(rank: int, seconds: float, notify: Any) -> None:
    """What a worker does that computes for so long, by its own account."""
    while time.process_time() < seconds:
        pass


def hang(rank: int, notify: Any) -> None:
    """What a worker does that never gets on."""
    spin()


def crash() -> None:
    faulthandler._sigsegv()  # type: ignore[attr-defined]


def leave() -> None:
    os._exit(7)


def fail() -> None:
    raise ValueError("no such luck\nin two lines")


def ask_for_too_much() -> None:
    torch.empty(2**55)


def eat_memory() -> None:
    eaten = []
    while True:
        eaten.append(bytearray(os.urandom(2**20) * 16))


def main_process() -> int:
    parent = multiprocessing.parent_process()
    assert parent is not None
    assert parent.pid is not None
    return parent.pid


def signal_main(number: int) -> None:
    os.kill(main_process(), number)


def signal_all(number: int) -> None:
    os.killpg(os.getpgid(main_process()), number)


class _ActingHeartbeat(heartbeat.Heartbeat):
    place: Place
    action: Any
    visits: int

    def begin_stage(self, stage: int) -> None:
        super().begin_stage(stage)
        self._look()

    def begin_phase(self, phase: int) -> None:
        super().begin_phase(phase)
        self._look()

    def end_step(self) -> None:
        super().end_step()
        self._look()

    def _look(self) -> None:
        stage, steps, phase, _ = self.state()
        if (stage, steps + 1, phase) == (self.place.stage, self.place.step, self.place.phase):
            self.visits += 1
            if self.visits == self.place.visit:
                self.action()


def act_at(place: Place, action: Any) -> None:
    """In a worker: do the action as soon as this place is reached."""
    if place.stage == STARTING:
        action()
    heartbeat.heartbeat.__class__ = _ActingHeartbeat
    heartbeat.heartbeat.place, heartbeat.heartbeat.action = place, action  # type: ignore[attr-defined]
    heartbeat.heartbeat.visits = 0  # type: ignore[attr-defined]


def run_and_act(place: Place, action: Any, victim: int, rank: int, *arguments: Any) -> worker.WorkerReport:
    if rank == victim:
        act_at(place, action)
    return worker.run(rank, *arguments)


def make_read_only(mount: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(mount)], check=True)


def kill_main_and_stop() -> None:
    os.kill(main_process(), signal.SIGKILL)
    stop()


def leave_damaged_files(*arguments: Any, **named: Any) -> None:
    """Code that must never run: only a results folder names it."""
    Path("RUINS").touch()


def build(
    input_shape: tuple[int, ...],
    classes: int,
    action: str,
    number: int,
    stage: int,
    phase: int,
    step: int,
    visit: int,
    victim: int,
    training: int,
    counter: str,
) -> nn.Module:
    """As a user's model in a config: in the worker that is the victim, in its n-th program, a action at a place.

    A program is a segment or a whole training. The file `counter` gets a byte for each that this worker starts.
    """
    actions = {"signal_main": partial(signal_main, number), "signal_all": partial(signal_all, number)}
    actions["make_output_read_only"] = partial(make_read_only, Path(counter).parent / "out")
    actions["remove_output"] = partial(shutil.rmtree, Path(counter).parent / "out")
    if multiprocessing.current_process().name == f"dpexp-{victim}":
        with Path(counter).open("ab", buffering=0) as file:
            file.write(b".")
            number_of_program = file.tell()  # others may write at the same time
        if number_of_program == training:
            act_at(Place(stage, phase, step, visit), actions.get(action) or globals()[action])
    elif victim == -1 and multiprocessing.parent_process() is None:
        os.kill(os.getpid(), number)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, classes))
