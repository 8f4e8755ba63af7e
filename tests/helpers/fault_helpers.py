"""Jobs with faults put into their processes, and what is left of these afterwards."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from basics import tiny
from worker_actions import STEPS, Place, run_and_act

from dpexp.cli import resume as resume_command
from dpexp.config.built_in import BuiltInConfig
from dpexp.launchers.local import LocalLauncher
from dpexp.machine.environment import current_environment
from dpexp.measurement import job
from dpexp.measurement.user_files import fingerprint
from dpexp.phases import COMPUTE, PHASES, WAIT
from dpexp.processes.heartbeat import EVALUATING, FINISHING, REPORTING, STARTING, TRAINING, WAITING, WARMING_UP
from dpexp.train import worker

IN_ONE_PIECE = ["measurement.whole_trainings=always", "measurement.max_seconds=0.01", "measurement.baseline=none"]


def places(seed: int, rank: int = 1) -> Iterator[Place]:
    """Every kind of place in a rank's life, in a random step of a whole training."""
    randomly = random.Random(seed)
    yield Place(STARTING)
    for stage, phase in (
        (WARMING_UP, COMPUTE),
        (WARMING_UP, WAIT),
        *((TRAINING, phase) for phase in range(len(PHASES))),
    ):
        yield Place(stage, phase, randomly.randint(1, STEPS[stage]))
    yield Place(FINISHING)
    if rank == 0:
        yield Place(EVALUATING)
    yield Place(REPORTING)


def segment_places(seed: int) -> Iterator[Place]:
    """The same of a segment: before its first turn, in its untimed and timed steps, between turns, at its end."""
    randomly = random.Random(seed)
    yield Place(STARTING)
    yield Place(WAITING)
    yield Place(TRAINING, COMPUTE, 1)
    for phase in range(len(PHASES)):
        yield Place(TRAINING, phase, randomly.randint(2, 40))
    yield Place(WAITING, visit=randomly.randint(2, 4))
    yield Place(REPORTING)


def in_turns(place: Place) -> list[str]:
    """The settings of a job that comes to this place of a segment, however slow the machine is."""
    return ["measurement.whole_trainings=never", *(["measurement.max_seconds=60"] if place.stage != REPORTING else [])]


class Faulty(LocalLauncher):
    """Does the action in one program of several workers: of the segments or of the whole trainings the n-th, from 0."""

    def __init__(self, place: Place, action: Any, victim: int, in_turns: bool = True, number: int = 0) -> None:
        super().__init__()
        self._fault = partial(run_and_act, place, action, victim)
        self._in_turns, self._left = in_turns, number

    def target(self, name: str, spec: worker.TrainingSpec) -> Any:
        if spec.config.process_count == 1 or spec.in_turns is not self._in_turns:
            return super().target(name, spec)
        self._left -= 1
        return self._fault if self._left == -1 else super().target(name, spec)


def run_job(folder: Path, *overrides: str, **options: Any) -> bool:
    """The tiny job; whether it was measured."""
    return run_config(tiny(*overrides), folder, **options)


def run_config(
    config: BuiltInConfig,
    folder: Path,
    launcher: LocalLauncher | None = None,
    resume: bool = False,
    record_bad_input: bool = True,
) -> bool:
    """A job as a command runs it; whether it was measured."""
    environment, files = current_environment(), fingerprint(config)
    earlier = resume_command.find_earlier(config, folder, environment) if resume else None
    if earlier is not None and earlier.status == "ok":
        return False
    launcher = launcher
    job.measure_job(config, folder, lambda text, done: None, launcher, environment, files, record_bad_input, earlier)
    return True


def faulty_model(folder: Path, action: str, place: Place, victim: int, number: int = 0, training: int = 1) -> list[str]:
    """The overrides that choose worker_actions.build, as a fault in the n-th program of rank `victim`, from 1.

    Victim -1 is the main process, while it builds the model.
    """
    arguments = {"action": action, "number": number, "victim": victim, "training": training, **vars(place)}
    arguments["counter"] = folder / "counter"
    return [
        "model=custom",
        "model.builder=worker_actions:build",
        *(f"+model.arguments.{name}={value}" for name, value in arguments.items()),
    ]


def children() -> set[int]:
    """Worker processes of this one: the fork server's children."""
    found = set()
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.ZombieProcess):
            if "forkserver" in " ".join(child.cmdline()):
                found |= {one.pid for one in child.children(recursive=True)}
    return found


def marked(marker: str) -> list[psutil.Process]:
    """All processes that were started with this word in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if marker in process.environ().values() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def descriptors() -> int:
    return psutil.Process().num_fds()
