"""Under torchrun: rank 0 measures, and publishes one task after another for the agents on the other ranks."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

from dpexp.config.built_in import BuiltInConfig
from dpexp.config.job import JobConfig
from dpexp.errors import ConfigError, DpexpError, PeerError, WorkerError, one_line
from dpexp.launchers.command_processes import CommandSpec
from dpexp.launchers.commands import run_on_host
from dpexp.launchers.local import LocalLauncher, explain_start_errors
from dpexp.launchers.torchrun_channel import Channel
from dpexp.launchers.torchrun_environment import TorchrunEnvironment
from dpexp.machine import signals
from dpexp.processes.fork_server import start_server
from dpexp.processes.launch import REMOTE_CAUSE_SECONDS, launch
from dpexp.processes.world import RemoteRanks, WorldSpec
from dpexp.train import worker
from dpexp.train.data.dataset import Dataset, load
from dpexp.train.models.initial_state import initial_state
from dpexp.train.strategies.rendezvous import Rendezvous
from dpexp.train.worker import TrainingSpec, WorkerReport

END_SECONDS = 10.0
FIRST_TASK: dict[str, Any] = {"number": 0, "kind": "rest", "errors": []}


class TorchrunController(LocalLauncher):
    """Runs one worker of a training on each rank, and single processes on rank 0's machine."""

    def __init__(self, environment: TorchrunEnvironment, arguments: Sequence[str]) -> None:
        super().__init__()
        self._environment = environment
        self.hosts, self.count = self, environment.world_size  # for a script, one dpexp runs on each host
        self.address, self.local_world_size = environment.master_address, environment.local_world_size
        self.machines = environment.world_size // environment.local_world_size
        self.channel = Channel(environment, arguments, task=FIRST_TASK)
        self._task_number = 0  # number of the last task
        self._loaded: BuiltInConfig | None = None  # the job whose data all agents hold
        self._errors: list[str] = []  # errors of all tasks so far

    def check(self, config: JobConfig) -> None:
        """Raise ConfigError for a job that the ranks can't run."""
        self._environment.check(config)
        if config.measurement.shared_memory == "always" and config.with_shared_memory() is not None:
            raise ConfigError(
                "measurement.shared_memory=always is not supported under torchrun; measure two jobs, such as "
                "strategy.exchange=gloo and strategy.exchange=shared_memory"
            )

    def run_script(self, command: CommandSpec, number: int, address: str) -> contextlib.AbstractContextManager[None]:
        """Run the command on the other hosts while the context is open; its processes report to `address`."""
        return self._task("script", script=(command, number, address))

    def raise_failures(self) -> None:
        """Raise WorkerError if the command has failed on another host, or the host is lost."""
        self._answers()

    def end(self, status: int, error: str = "") -> None:
        """End the agents with this status, and wait for them, since they may still need the store."""
        if error and not any(published in error for published in self._errors):
            self._errors.append(error)
        self._publish("end", status=status)
        until = time.monotonic() + END_SECONDS
        while self.channel.seen.keys() - self.channel.lost() and time.monotonic() < until:
            time.sleep(0.1)
        self.channel.close()

    def _world_spec(
        self, cleanup: contextlib.ExitStack, name: str, spec: TrainingSpec, pipe: Connection | None
    ) -> WorldSpec:
        if spec.config.process_count == 1:
            return super()._world_spec(cleanup, name, spec, pipe)
        if self._loaded != spec.dataset.config:  # before anything is timed
            with self._task("load", config=spec.dataset.config):
                self.channel.wait_until(self._answers)
            self._loaded = spec.dataset.config
        cleanup.enter_context(self._task("train", config=spec.config, in_turns=spec.in_turns))
        remote = RemoteRanks(0, self._sync_progress, self._answers)
        return _one_rank(spec, self._environment, self._task_number, pipe, remote)

    @contextlib.contextmanager
    def _task(self, kind: str, **task: Any) -> Iterator[None]:
        """Let the agents carry out a task while the context is open. Raises the root cause of a WorkerError."""
        self._publish(kind, **task)
        try:
            try:
                yield
            except PeerError:
                self.channel.wait_until(self._answers, REMOTE_CAUSE_SECONDS)  # the rank that knows the cause
                raise
        except WorkerError as error:
            self._errors.append(str(error))
            raise
        finally:
            self._publish("rest")

    def _publish(self, kind: str, **task: Any) -> None:
        self._task_number += 1
        self.channel.publish(task={"number": self._task_number, "kind": kind, "errors": self._errors.copy(), **task})

    def _sync_progress(self, local: Any) -> list[Any]:
        self._answers()
        return [facts["progress"] for facts in self.channel.seen.values()]

    def _answers(self) -> list[Any] | None:
        """Return the answers of all agents; None until the last is there. Raises WorkerError if one has failed."""
        answers = [facts["answer"] for facts in self.channel.seen.values() if facts["number"] == self._task_number]
        for answer in answers:
            if isinstance(answer, WorkerError):
                raise answer
        if len(answers) == self._environment.world_size - 1:
            return answers
        self.channel.check()
        return None


class TorchrunAgent:
    """Carries out rank 0's tasks on ranks 1 and up: it launches one worker for a training."""

    def __init__(self, environment: TorchrunEnvironment, arguments: Sequence[str]) -> None:
        self._environment = environment
        self._channel = Channel(environment, arguments, number=0, answer=None, progress=None)
        self._task = FIRST_TASK  # the task that is carried out
        self._dataset: Dataset | None = None
        if not any(word == "--" or word.startswith("script.") for word in arguments):
            start_server()  # it imports torch in the meantime, as rank 0's does

    def serve(self, show_error: Callable[[str], None]) -> int:
        """Carry out rank 0's tasks until it ends; return its exit status. `show_error` receives errors.

        Raises WorkerError when rank 0 dies, ConfigError when it was started with a different world size or arguments.
        """
        why = f"rank {self._environment.rank} has ended; its output says why"
        try:
            self._channel.wait_until(self._channel.all_joined)
            while self._task["kind"] != "end":
                self._channel.publish(number=self._task["number"], answer=self._answer())
                self._channel.wait_until(self._is_over)
                shown, self._task = len(self._task["errors"]), self._channel.seen[0]["task"]
                for error in self._task["errors"][shown:]:
                    show_error(error)
            return int(self._task["status"])
        except signals.Interrupted as stop:
            why = f"rank {self._environment.rank} was ended by {stop}"
            show_error(why)
            raise
        finally:
            self._channel.close(left=why)

    def _is_over(self) -> bool:
        """Whether rank 0 has gone on to another task."""
        return bool(self._channel.seen[0]["task"]["number"] != self._task["number"])

    def _answer(self) -> WorkerReport | WorkerError | None:
        try:
            if self._task["kind"] == "load":
                self._dataset = None  # free the memory of the last one first
                self._dataset = load(self._task["config"])
            if self._task["kind"] == "script":
                command, number, address = self._task["script"]
                run_on_host(command, self._environment.rank, number, address, lambda: self._sync_progress(None))
            return self._train() if self._task["kind"] == "train" else None
        except WorkerError as error:  # its message names the rank
            if isinstance(error, PeerError):  # the rank that knows the cause answers first
                self._channel.wait_until(self._is_over, REMOTE_CAUSE_SECONDS)
            return error
        except Exception as error:  # whatever it is, rank 0 must know
            message = str(error) if isinstance(error, DpexpError) else one_line(error)
            return WorkerError(f"rank {self._environment.rank}: {message}")

    def _train(self) -> WorkerReport:
        config, dataset = self._task["config"], self._dataset
        assert dataset is not None, "the first task is to load the data"
        remote = RemoteRanks(self._environment.rank, self._sync_progress)
        spec = TrainingSpec(config, dataset, initial_state(config, dataset), in_turns=self._task["in_turns"])
        world = _one_rank(spec, self._environment, self._task["number"], None, remote)
        with explain_start_errors(spec):
            (report,) = launch(world)  # rank 0 ends those that hang
            return report  # type: ignore[no-any-return]

    def _sync_progress(self, local: Any) -> None:
        """Publish progress. Raises PeerError if the task is over, WorkerError if rank 0 is lost."""
        self._channel.publish(progress=local)
        self._channel.check()
        if self._is_over():
            raise PeerError("rank 0 has ended this training")


def _one_rank(
    spec: TrainingSpec, environment: TorchrunEnvironment, task: int, turn_pipe: Connection | None, remote: RemoteRanks
) -> WorldSpec:
    """Return the one worker of a rank in this task; it is ended if another rank's worker fails."""
    rendezvous = Rendezvous(environment.master_address, environment.master_port, f"{environment.prefix}/world/{task}")
    return WorldSpec(worker.run, [(spec, rendezvous, turn_pipe)], remote=remote)
