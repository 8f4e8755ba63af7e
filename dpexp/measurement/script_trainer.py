"""Trainings in the user's scripts: the reports of their processes become arms."""

from __future__ import annotations

import contextlib
import itertools
import math
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from dpexp.config.job import BASELINE, BEST_SEQUENTIAL, CANDIDATE, JobConfig, arm_label
from dpexp.config.script import ScriptConfig
from dpexp.errors import ScriptEnded, WorkerError, pluralize
from dpexp.launchers.command_processes import CommandSpec
from dpexp.launchers.commands import Hosts, running_commands
from dpexp.launchers.running_command import RunningCommand, StepTrace
from dpexp.measurement.trainer import ArmSteps, Pace
from dpexp.phases import MAX_PHASE_STEPS, PHASES
from dpexp.processes.turn import Turn
from dpexp.results.schema import Arm, Process
from dpexp.results.storage import explain_write_errors

OUTPUT = "output"  # folder for the output of the commands
MIN_COMPUTING = 0.01  # share of a step; with less, the phases were not separated
MAX_UNKNOWN = 0.1  # share of the steps; if the wait is unknown in more of them, all of it counts as communicating
# Processes and their data loaders wake up at the beginning of a turn, and are out of step for some tens of
# milliseconds: both are longer than in built-in trainings.
PACE = Pace(turn_seconds=0.12, untimed_seconds=0.03, min_untimed_steps=1, traced_every=4)


class ScriptTrainer:
    """Starts the command of each arm."""

    def __init__(self, config: ScriptConfig, folder: Path, hosts: Hosts | None) -> None:
        """`folder` receives the output of the commands, in a folder of its own. Raises ResultError."""
        self._folder, self._hosts = folder / OUTPUT, hosts
        with explain_write_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            earlier = [int(path.name.partition("-")[0]) for path in self._folder.glob("[0-9]*-*")]  # before a resume
        self._numbers = itertools.count(max(earlier, default=-1) + 1)
        self.files: set[str] = set()  # files that the commands' processes depend on
        self._timeout_seconds = config.launch.timeout_seconds

    def pace(self, configs: Mapping[str, JobConfig]) -> Pace:
        """Return the length of turns."""
        return PACE

    @contextlib.contextmanager
    def running(self, configs: Mapping[str, JobConfig]) -> Iterator[ScriptArms]:
        """Run the command of each arm while the context is open. Raises WorkerError, ConfigError."""
        number = next(self._numbers)
        commands = {name: self._command(name, config) for name, config in configs.items()}
        output = {name: self._folder / f"{number}-{name.replace(' ', '_')}" for name in configs}
        try:
            with running_commands(commands, output, self._timeout_seconds, self._hosts) as running:
                self.files |= {name for command in running.values() for name in command.files}
                yield ScriptArms(running)
        except ScriptEnded as ended:
            raise WorkerError(
                f"{ended}: the script ended before it could be measured; let it train for more steps, "
                "or reduce measurement.warmup_steps"
            ) from None

    def _command(self, name: str, config: JobConfig) -> CommandSpec:
        assert isinstance(config, ScriptConfig)
        places = () if self._hosts is None else (self._hosts.count, self._hosts.address)
        return CommandSpec(
            name=pluralize(config.workers, "worker") if name == CANDIDATE else arm_label(name),
            words=config.words(_free_port(), *places),
            ranks=config.workers,
            threads=config.threads_per_worker,
            global_batch_size=config.global_batch_size,
            exchange=config.script.exchange,
        )


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class ScriptArms:
    """Commands, as arms."""

    def __init__(self, running: Mapping[str, RunningCommand]) -> None:
        self._running = running

    def run_turn(self, name: str, turn: Turn) -> list[float]:
        """Let one arm make some steps; return the wall seconds of each timed one. Raises WorkerError, ScriptEnded."""
        return self._running[name].run_turn(turn)

    def end(self, timed: Mapping[str, ArmSteps]) -> dict[str, Arm]:
        """Return the results of the arms; a script that sets its own threads has no best sequential process."""
        arms = {name: _arm(command, timed[name]) for name, command in self._running.items()}
        if BASELINE in arms and BEST_SEQUENTIAL in arms and arms[BASELINE].threads == arms[BEST_SEQUENTIAL].threads:
            del arms[BEST_SEQUENTIAL]
        return arms


def _arm(command: RunningCommand, timed: ArmSteps) -> Arm:
    command.collect_final_reports()
    if command.spec.exchange is not None and not all(rank.shares_memory for rank in command.ranks):
        raise WorkerError(
            f"{command.spec.name}: the script created no DistributedDataParallel model whose gradients could be "
            "exchanged in shared memory"
        )
    return Arm(
        samples_per_step=command.spec.global_batch_size,
        turns=timed.turns,
        first_steps=timed.first_steps,
        phases=_phases(command.traces),
        between_epochs_seconds=0.0,
        processes=[Process(threads=rank.threads, **rank.report) for rank in command.ranks],
        memory_bytes=command.processes.memory_bytes if len(command.spec.words) == 1 else None,  # else: others elsewhere
        cpu_seconds=command.processes.used_cpu_seconds,
    )


def _phases(turns: Sequence[Sequence[Sequence[StepTrace]]]) -> dict[str, list[list[float]]]:
    """Return the phases of each process in its traced steps: (steps, processes) by name."""
    steps = [traces for turn in turns for traces in zip(*turn, strict=True)]
    if not steps:
        return {}
    chosen = np.linspace(0, len(steps) - 1, min(MAX_PHASE_STEPS, len(steps))).astype(int)
    split_steps = [_phases_of_step(steps[number]) for number in chosen]
    phases = {name: np.array([[process[name] for process in step] for step in split_steps]) for name in PHASES}
    if phases["compute"].sum() < MIN_COMPUTING * sum(np.nansum(seconds) for seconds in phases.values()):
        return {}  # no `backward` was seen, so the phases can't be separated
    if np.isnan(phases["wait"]).mean() > MAX_UNKNOWN:
        phases["communicate"] += np.nan_to_num(phases.pop("wait"))
    return {name: np.nan_to_num(seconds).tolist() for name, seconds in phases.items()}


def _phases_of_step(traces: Sequence[StepTrace]) -> list[dict[str, float]]:
    """Return the phases of one step of each process.

    At each sync point, a process waits for the last one, then communicates. The wait is NaN if the processes
    did not have the same number of sync points, so that these can't be matched.
    """
    points_of_ranks = [sync_points for *_, sync_points in traces]
    are_matched = len({len(sync_points) for sync_points in points_of_ranks}) == 1
    last_arrivals = [max(arrival for arrival, _ in point) for point in zip(*points_of_ranks, strict=False)]
    phases = []
    for data, compute, update, sync_points in traces:
        communicate, wait = sum(seconds for _, seconds in sync_points), 0.0
        if len(traces) == 1:
            compute, communicate = compute + communicate, 0.0
        elif are_matched:
            arrived = zip(sync_points, last_arrivals, strict=True)
            wait = sum(min(seconds, last - arrival) for (arrival, seconds), last in arrived)
            communicate -= wait
        else:
            wait = math.nan
        phases.append({"data": data, "compute": compute, "wait": wait, "communicate": communicate, "update": update})
    return phases
