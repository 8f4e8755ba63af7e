"""The launcher on one machine: this process starts every worker."""

import contextlib
from collections.abc import Iterator, Mapping
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from types import MappingProxyType

from dpexp.config.job import CANDIDATE, JobConfig, arm_label
from dpexp.errors import WorkerError
from dpexp.launchers.commands import Hosts
from dpexp.machine.memory import peak_bytes
from dpexp.processes.fork_server import Target
from dpexp.processes.launch import RunningWorlds, launch, running_worlds
from dpexp.processes.turn import Turn
from dpexp.processes.world import WorldSpec
from dpexp.train import worker
from dpexp.train.strategies import strategy_class
from dpexp.train.worker import TrainingSpec, WorkerReport


class RunningSegments:
    """The running processes of some segments, by name. An error names its segment, unless that is the candidate."""

    def __init__(self, processes: RunningWorlds, turn_pipes: Mapping[str, Connection]) -> None:
        """Wait until all segments sleep before their first turn. Raises WorkerError."""
        self._processes, self._turn_pipes = processes, turn_pipes
        # Of all processes, known at the end; None: not readable, or some are on other machines.
        self.memory_bytes: dict[str, int | None] = {}
        for name in turn_pipes:
            self._answer(name)

    def run_turn(self, name: str, turn: Turn) -> list[float]:
        """Let a segment make some steps; return the wall seconds of each timed step. Raises WorkerError."""
        self._turn_pipes[name].send(turn)
        return self._answer(name)

    def end(self) -> dict[str, list[WorkerReport]]:
        """End all segments; return the reports of each by rank. Raises WorkerError."""
        pids = {name: self._processes.pids(world) for world, name in enumerate(self._turn_pipes)}
        peaks = {name: peak_bytes(of_world) for name, of_world in pids.items()}
        for turn_pipe in self._turn_pipes.values():
            turn_pipe.send(None)
        reports = dict(zip(self._turn_pipes, self._processes.reports(), strict=True))
        self.memory_bytes = {name: peaks[name] if len(reports[name]) == len(pids[name]) else None for name in peaks}
        return reports

    def _answer(self, name: str) -> list[float]:
        """Wait for the end of a segment's turn; return the seconds of its steps."""
        answer: list[float] = self._processes.next_notice(list(self._turn_pipes).index(name))
        return answer


class LocalLauncher:
    """Runs trainings in fresh processes of this machine."""

    hosts: Hosts | None = None  # other hosts, if any take part
    local_world_size: int | None = None  # ranks on this machine, if torchrun started them
    machines: int = 1

    def __init__(self, targets: Mapping[str, Target] = MappingProxyType({})) -> None:
        """`targets` are run by the workers of the named trainings instead of `worker.run`."""
        self._targets = targets

    def check(self, config: JobConfig) -> None:
        """Raise ConfigError for a job that this launcher can't run."""

    def run(self, spec: TrainingSpec) -> list[WorkerReport]:
        """Run one whole training; return the reports of all processes by rank. Raises WorkerError."""
        with explain_start_errors(spec), contextlib.ExitStack() as cleanup:
            return launch(self._world_spec(cleanup, CANDIDATE, spec, None), spec.config.launch.timeout_seconds)

    @contextlib.contextmanager
    def segments(self, specs: Mapping[str, TrainingSpec]) -> Iterator[RunningSegments]:
        """Start the processes of all segments, which take turns while the context is open. Raises WorkerError."""
        first = next(iter(specs.values()))
        with explain_start_errors(first), contextlib.ExitStack() as cleanup:
            turn_pipes, worlds = {}, []
            for name, spec in specs.items():
                receiver, turn_pipes[name] = Pipe(duplex=False)
                for connection in (receiver, turn_pipes[name]):
                    cleanup.callback(connection.close)
                worlds.append(self._world_spec(cleanup, name, spec, receiver))
            with running_worlds(worlds, first.config.launch.timeout_seconds) as processes:
                yield RunningSegments(processes, turn_pipes)

    def target(self, name: str, spec: TrainingSpec) -> Target:
        """Return the function that each worker process runs."""
        return self._targets.get(name, worker.run)

    def _world_spec(
        self, cleanup: contextlib.ExitStack, name: str, spec: TrainingSpec, pipe: Connection | None
    ) -> WorldSpec:
        """Return the processes of one training to start; rank 0 receives its turns from the pipe."""
        shared = strategy_class(spec.config).share(spec.config, spec.initial)
        arguments = [(spec, part, None if rank else pipe) for rank, part in enumerate(shared)]
        return WorldSpec(self.target(name, spec), arguments, arm_label(name))


@contextlib.contextmanager
def explain_start_errors(spec: TrainingSpec) -> Iterator[None]:
    """Turn "too many open files" or "too many processes" into a WorkerError."""
    try:
        yield
    except OSError as error:
        raise WorkerError(
            f"workers={spec.config.workers} can't be started: {error.strerror}; use fewer workers"
        ) from error
