"""Many launches with random kills, and what they leave behind."""

from __future__ import annotations

import contextlib
import gc
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import psutil

from dpexp.config.built_in import BuiltInConfig
from dpexp.config.compose import compose_config
from dpexp.errors import WorkerError
from dpexp.launchers.local import LocalLauncher
from dpexp.train.data.dataset import load
from dpexp.train.models.initial_state import initial_state
from dpexp.train.worker import TrainingSpec

TINY = ["data=synthetic", "data.size=101", "data.test_size=40", "data.shape=[16]", "data.classes=3", "model.hidden=[7]"]
TINY += ["batch.size=24", "batch.scope=global", "measurement.warmup_steps=2"]
MIB = 2**20
SHARED = Path("/dev/shm")  # noqa: S108 (only looked at)


@dataclass(frozen=True)
class Census:
    """What this process and the machine hold at a moment."""

    descriptors: int
    threads: int
    processes: int  # children, and theirs
    shared_names: int  # in /dev/shm
    memory_mib: int  # resident, of this process

    @classmethod
    def take(cls) -> Census:
        """Now, after a collection of garbage."""
        gc.collect()
        own = psutil.Process()
        names = len(shared_names())
        children = len(own.children(recursive=True))
        return cls(own.num_fds(), own.num_threads(), children, names, own.memory_info().rss // MIB)


def shared_names() -> set[str]:
    """Named shared memory and semaphores of the machine."""
    return {path.name for path in SHARED.iterdir()} if SHARED.is_dir() else set()


def soak(launches: int, seed: int) -> tuple[Counter[str], list[float]]:
    """So many trainings by 1 to 4 workers, every second one of which loses a random worker at a random moment.

    Returns how many ended how, and the seconds from each kill until the error was here.
    """
    randomly = random.Random(seed)  # noqa: S311 (no secret)
    outcomes: Counter[str] = Counter()
    seconds: list[float] = []
    jobs = [_job(workers) for workers in (1, 2, 3, 4)]
    dataset = load(jobs[0])
    specs = [TrainingSpec(config, dataset, initial_state(config, dataset)) for config in jobs]
    LocalLauncher().run(specs[0])  # now the fork server is ready
    undisturbed = [_seconds(spec) for spec in specs]
    for number in range(launches):
        chosen = randomly.randrange(len(specs))
        killer = _Killer(randomly.uniform(0, undisturbed[chosen]), randomly.random()) if number % 2 else None
        try:
            with killer or contextlib.nullcontext():
                LocalLauncher().run(specs[chosen])
            outcomes["trained"] += 1
        except WorkerError as error:
            if killer is not None and killer.killed_at is not None:
                seconds.append(time.monotonic() - killer.killed_at)
            outcomes["failed, as " + ("killed" if "was killed by SIGKILL" in str(error) else str(error))] += 1
    return outcomes, seconds


def _job(workers: int) -> BuiltInConfig:
    config = compose_config(*TINY, f"workers={workers}", "epochs=8")
    assert isinstance(config, BuiltInConfig)
    return config


def _seconds(spec: TrainingSpec) -> float:
    started = time.monotonic()
    LocalLauncher().run(spec)
    return time.monotonic() - started


class _Killer:
    """Within, a thread kills one of the workers after some time, whatever they do then."""

    def __init__(self, after_seconds: float, choice: float) -> None:
        self._after_seconds, self._choice = after_seconds, choice
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._kill)
        self.killed_at: float | None = None

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _kill(self) -> None:
        if self._over.wait(self._after_seconds):
            return
        workers = [one for child in psutil.Process().children() for one in child.children()]
        if workers:
            with contextlib.suppress(psutil.Error):
                victim = workers[int(self._choice * len(workers))]
                self.killed_at = time.monotonic()
                victim.kill()
