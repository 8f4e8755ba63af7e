"""Results as if measured, for what reads them."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from basics import composed

from dpexp.config.built_in import BuiltInConfig
from dpexp.config.job import BASELINE, CANDIDATE
from dpexp.machine import environment
from dpexp.machine.environment import Environment
from dpexp.results.schema import VERSION, Arm, Block, Conditions, JobResult, Process, Training
from dpexp.results.storage import write

MACHINE = replace(environment.current_environment(), cpu_model="Test CPU", usable_cores=2, logical_cores=2)
QUIET = Conditions(0.0, 0.0, 0.0)
_starts = itertools.count(1)  # no two measurements started at the same time
TURNS, STEPS = 24, 4  # of an arm, and of each of its turns
WOBBLE = 0.002  # by which a step is longer or shorter than the mean


def arm_of(turns: list[list[float]], samples_per_step: int = 64, processes: int = 1, threads: int = 1) -> Arm:
    """An arm of these turns, with an untimed step before each."""
    lengths = np.array([len(turn) for turn in turns])
    return Arm(
        samples_per_step=samples_per_step,
        turns=turns,
        first_steps=(1 + np.cumsum(lengths + 1) - lengths).tolist(),
        phases={},
        between_epochs_seconds=0.0,
        processes=[Process(threads)] * processes,
    )


def arm(config: BuiltInConfig, seconds: float, threads: int | None = None) -> Arm:
    """An arm of whose steps the whole training of `config` takes so long."""
    steps = config.epochs * config.train_samples / config.global_batch_size
    wobble = 1 + WOBBLE * np.sin(np.arange(TURNS * STEPS) ** 2)
    each = seconds / steps * wobble / wobble.mean()
    threads = threads or config.threads_per_worker
    return arm_of(each.reshape(TURNS, STEPS).tolist(), config.global_batch_size, config.process_count, threads)


def with_phases(own: Arm, *processes: dict[str, float]) -> Arm:
    """The same arm of these processes, each with so many seconds of a step in each phase."""
    phases = {name: [[one[name] for one in processes]] * TURNS for name in processes[0]}
    return replace(own, phases=phases, processes=[Process(1)] * len(processes))


def changed(block: Block, **arms: Arm) -> Block:
    """The same block with other arms, or more of them."""
    return replace(block, arms=block.arms | arms)


def training(
    seconds: float = 1.0, accuracy: float | None = None, loss: float | None = 0.5, seed: int = 0, **changes: Any
) -> Training:
    return Training(
        **(
            {
                "seed": seed,
                "seconds": seconds,
                "epoch_losses": [loss],
                "test_accuracy": accuracy,
                "epoch_accuracies": [],
                "parameters_sha256": "00",
            }
            | changes
        )
    )


def result(
    *overrides: str,
    seconds: list[float],
    baseline: list[float] | None,
    machine: Environment = MACHINE,
    change: Callable[[Block], Block] = lambda block: block,
    **changes: Any,
) -> JobResult:
    """A result of the composed job, by the seconds of a whole training."""
    config = composed(*overrides)
    blocks = []
    for number, one in enumerate(seconds):
        arms = {CANDIDATE: arm(config, one)}
        if baseline is not None:
            arms = {BASELINE: arm(config.baseline(), baseline[number])} | arms
        blocks.append(change(Block(arms, QUIET, 2.0)))
    trainings = {CANDIDATE: [training(statistics.fmean(seconds), 0.8)]}
    if baseline is not None:
        trainings[BASELINE] = [training(statistics.fmean(baseline), 0.9)]
    fields: dict[str, Any] = {
        "format": "dpexp-result",
        "version": VERSION,
        "status": "ok",
        "error": None,
        "details": None,
        "started_at": str(next(_starts)),
        "resumed_at": [],
        "config_sha256": config.sha256,
        "config": config,
        "environment": machine,
        "blocks": blocks,
        "trainings": trainings,
        "user_files": {},
    }
    return JobResult(**(fields | changes))


def write_sweep(folder: Path, *results: JobResult) -> Path:
    """Each result in a numbered job folder."""
    for number, one in enumerate(results):
        (folder / str(number)).mkdir(parents=True, exist_ok=True)
        write(one, folder / str(number))
    return folder


def in_bursts(blocks: list[Block], name: str, times: float = 2.0, turns: int = 5) -> list[Block]:
    """The same blocks, but somebody else's work makes these turns of an arm so many times as long, in each at another
    time."""
    slowed = []
    for number, block in enumerate(blocks):
        own, first = block.arms[name], number * (turns - 1) % (TURNS - turns)
        seconds = [
            [times * step for step in turn] if first <= at < first + turns else turn
            for at, turn in enumerate(own.turns)
        ]
        slowed.append(changed(block, **{name: replace(own, turns=seconds)}))
    return slowed
