"""Trainings by a script of the user's, in turns; what its processes reported becomes a training like any other.

A script has no end that is known beforehand. Its timed steps stand for the samples of data.size: all times are scaled
to these.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from dpexp.config.experiment import ExperimentConfig
from dpexp.config.strategies import ScriptConfig
from dpexp.errors import ResultError
from dpexp.launchers.local import CANDIDATE, LocalLauncher
from dpexp.machine import core_latency
from dpexp.machine.core_latency import CoreLatency
from dpexp.measurement.trainer import Trainer, Variant
from dpexp.phases import PHASES
from dpexp.results.schema import Block, Distribution, Training, WorkerTimes
from dpexp.script.launcher import Measured, Trace, run_in_turns
from dpexp.script.world import Command
from dpexp.words import counted

OUTPUT = "output"  # folder of what the commands write
MOST_UNKNOWN = 0.1  # of the steps; where it is unknown in more of them who waits, waiting isn't told apart


@contextlib.contextmanager
def prepared(config: ExperimentConfig, folder: Path, launcher: LocalLauncher) -> Iterator[Trainer]:
    """With a folder for what the commands write. Raises ResultError."""
    try:
        (folder / OUTPUT).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResultError(f"can't write {folder / OUTPUT}: {error.strerror}") from error
    yield ScriptTrainer(folder / OUTPUT)


class ScriptTrainer:
    """Starts the command of each variant."""

    input_shape: tuple[int, ...] = ()

    def __init__(self, folder: Path) -> None:
        self._folder, self._numbers = folder, itertools.count()

    def get_ready(self, config: ExperimentConfig, earlier: Sequence[Block]) -> None:
        """Nothing is kept from block to block."""

    def place_anew(self) -> None:
        """Each block starts new processes."""

    def reseed(self, config: ExperimentConfig) -> None:
        """The seed is a placeholder of the command."""

    def train_in_turns(
        self,
        variants: Mapping[str, Variant],
        evaluate: bool = False,
        checkpoint: Path | None = None,
        on_turn: Callable[[float], None] = lambda done: None,
    ) -> dict[str, Training]:
        """One training of each variant; see run_in_turns. Raises WorkerError, ConfigError."""
        number = next(self._numbers)
        commands = {name: self._command(name, number, variant) for name, variant in variants.items()}
        config = next(iter(variants.values())).config
        assert isinstance(config.strategy, ScriptConfig)
        latency = core_latency.measured()
        found = run_in_turns(
            commands,
            config.measurement.warmup_steps,
            config.strategy.training_seconds,
            config.measurement.phases,
            config.launch.timeout_seconds,
            on_turn,
        )
        return {name: _recorded(variants[name], commands[name], found[name], latency) for name in variants}

    def _command(self, name: str, number: int, variant: Variant) -> Command:
        config, copies = variant.config, variant.copies or 1
        shown = name.replace("_", " ")
        if name == CANDIDATE:
            shown = counted(config.workers, "worker")
        return Command(
            shown,
            config.command,
            config.workers,
            copies,
            config.threads_per_worker,
            copies * config.global_batch_size,
            self._folder / f"{number}-{name.replace(' ', '_')}",
        )


def _recorded(variant: Variant, command: Command, measured: Measured, latency: CoreLatency | None) -> Training:
    """What a result keeps of the turns of a command."""
    samples = variant.config.epochs * variant.config.train_samples * command.copies
    # By turns, so that their sum is the time of all samples.
    scale = samples / (measured.turn_samples * len(measured.turn_seconds))
    turn_seconds = [seconds * scale for seconds in measured.turn_seconds]
    return Training(
        turn_seconds=turn_seconds,
        steps=None,
        epoch_losses=[],
        test_accuracy=None,
        epoch_seconds=[],
        epoch_accuracies=[],
        parameters_sha256=measured.parameters_sha256,
        linear_kernel="script",
        workers=[
            WorkerTimes(
                rank=rank.number,
                threads=rank.threads,
                seconds=sum(turn_seconds),
                process_cpu_seconds=cpu_seconds,
                startup_seconds=rank.startup_seconds,
                warmup_seconds=measured.warmup_seconds,
                evaluation_seconds=0.0,
                phases=_phases(command, measured, rank.number, sum(turn_seconds)),
            )
            for rank, cpu_seconds in zip(measured.ranks, measured.cpu_seconds, strict=True)
        ],
        core_latency=latency if variant.copies is None and variant.config.busy_threads > 1 else None,
    )


def _phases(command: Command, measured: Measured, rank: int, seconds: float) -> dict[str, Distribution]:
    """Where the time of one process goes, from its traced steps, whose own cost is taken out in proportion."""
    if not measured.traces:
        return {}
    steps = [value for turn in measured.step_seconds for value in turn[rank]]
    first = rank - rank % command.ranks  # of those that train together
    together = range(first, first + command.ranks)
    split = [_split(turn, step, rank, together) for turn in measured.traces for step in range(len(turn[rank]))]
    values = {name: np.array([row[name] for row in split]) for name in PHASES}
    if np.isnan(values["wait"]).mean() > MOST_UNKNOWN:
        values["communicate"] += np.nan_to_num(values.pop("wait"))
    values = {name: np.nan_to_num(each) for name, each in values.items()}
    traced = np.sum(list(values.values()), axis=0)
    cost = float(traced.mean()) / statistics.fmean(steps)
    found = {name: _distribution(each / cost, seconds * each.sum() / traced.sum()) for name, each in values.items()}
    return {
        **found,
        "step": _distribution(np.array(steps), seconds),
        "traced_step": _distribution(np.array(measured.traced_step_seconds), seconds * cost),
    }


def _split(turn: Sequence[Sequence[Trace]], step: int, rank: int, together: range) -> dict[str, float]:
    """The phases of one step of one process. In each meeting it waits for the last to arrive, and then communicates.

    The wait is NaN where the processes did not meet equally often, and so nobody knows which meetings were the same.
    """
    data, compute, update, meetings = turn[rank][step]
    synchronize = sum(seconds for _, seconds in meetings)
    if len(together) == 1:
        return {"data": data, "compute": compute + synchronize, "wait": 0.0, "communicate": 0.0, "update": update}
    wait = math.nan
    everybodys = [turn[other][step][3] for other in together]
    if len({len(ones) for ones in everybodys}) == 1:
        last = [max(arrival for arrival, _ in same) for same in zip(*everybodys, strict=True)]
        wait = sum(min(seconds, last[at] - arrival) for at, (arrival, seconds) in enumerate(meetings))
    communicate = synchronize - (0.0 if math.isnan(wait) else wait)
    return {"data": data, "compute": compute, "wait": wait, "communicate": communicate, "update": update}


def _distribution(values: np.ndarray, seconds: float) -> Distribution:
    median, p95, p99 = (float(value) for value in np.percentile(values, (50, 95, 99)))
    return Distribution(seconds=float(seconds), median=median, p95=p95, p99=p99)
