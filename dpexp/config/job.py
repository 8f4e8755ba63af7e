"""The settings that every job has: frozen, and checked once, when it is built.

Values come from `conf/`; no field has a default here. Pydantic checks types and ranges, validators and functions
named `check_*` check rules between fields. Inside the package these objects are trusted.
"""

import hashlib
import json
from abc import abstractmethod
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import Field, PositiveInt, TypeAdapter
from pydantic.dataclasses import dataclass

from dpexp.config.groups import STRICT, BatchConfig, LaunchConfig, MeasurementConfig, SizedConfig
from dpexp.errors import ConfigError
from dpexp.machine.environment import usable_cores

# Names of arms: the measured training, its baseline, one process with the best number of threads, and the measured
# training with gradients exchanged in shared memory.
CANDIDATE, BASELINE, BEST_SEQUENTIAL, SHARED_MEMORY = "candidate", "baseline", "best_sequential", "shared_memory"
NOT_IN_IDENTITY = ("measurement", "launch", "checkpoint")  # settings that do not change what is measured

Self = TypeVar("Self", bound="JobConfig")


@dataclass(frozen=True, config=STRICT)
class JobConfig:
    """One job: how many workers, on which batches, and how it is measured."""

    workers: PositiveInt
    threads_per_worker: PositiveInt
    epochs: PositiveInt
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    data: SizedConfig
    batch: BatchConfig
    measurement: MeasurementConfig
    launch: LaunchConfig

    default_max_seconds: ClassVar[tuple[float, float]]  # time limits if max_seconds is null: short steps, long steps

    @property
    @abstractmethod
    def table_settings(self) -> dict[str, str]:
        """The settings that the table shows: strategy, model, data, data scope, exchange, a script's arguments."""

    @property
    def train_samples(self) -> int:
        """Samples of one epoch, of all workers together."""
        return self.data.size * (self.workers if self.data.scope == "per_worker" else 1)

    @property
    def process_count(self) -> int:
        """The number of processes that train together."""
        return self.workers

    @abstractmethod
    def baseline(self: Self, threads: int | None = None) -> Self:
        """Return the job of one sequential process, with the threads of a worker, or with `threads`."""

    @abstractmethod
    def with_shared_memory(self: Self) -> Self | None:
        """Return the job with gradients in shared memory instead; None for one worker, or if it does so already."""

    @property
    def settings(self) -> dict[str, Any]:
        """All values, nested as in the YAML files; a new dictionary at each call."""
        return TypeAdapter(type(self)).dump_python(self, mode="json")  # type: ignore[no-any-return]

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that say what is measured: jobs with equal identities measure the same."""
        settings = {name: value for name, value in self.settings.items() if name not in NOT_IN_IDENTITY}
        settings["data"].pop("cache", None)
        return settings

    @property
    def sha256(self) -> str:
        """The SHA-256 of the identity."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()

    @property
    def global_batch_size(self) -> int:
        """Samples of one optimizer update, of all workers together."""
        return self.batch.size * (self.workers if self.batch.scope == "per_worker" else 1)

    @property
    def local_batch_size(self) -> int:
        """Samples of one optimizer update, of one worker."""
        return self.global_batch_size // self.workers

    @property
    def updates(self) -> int:
        """Optimizer updates of the whole training; the last of each epoch may see a smaller batch."""
        return self.epochs * -(-self.train_samples // self.global_batch_size)

    @property
    def total_threads(self) -> int:
        """Threads that compute at the same time, on all machines together."""
        return self.process_count * self.threads_per_worker

    def threads_on(self, machines: int) -> int:
        """The threads that compute at the same time on one of so many machines."""
        return self.threads_per_worker * -(-self.process_count // machines)

    def check_batch(self) -> None:
        """Raise ValueError if a batch can't be split evenly over the workers."""
        if self.global_batch_size % self.workers:
            fewer = self.batch.size // self.workers * self.workers
            choices = f"{fewer} or {fewer + self.workers}" if fewer else f"{self.workers}"
            raise ValueError(
                f"batch.size={self.batch.size} with batch.scope=global can't be split evenly over "
                f"workers={self.workers}: choose a multiple of {self.workers}, such as {choices}"
            )


def arm_label(name: str) -> str:
    """Return how an error names an arm; "" for the candidate."""
    return "" if name == CANDIDATE else name.replace("_", " ")


def check_core_limits(config: JobConfig, machines: int = 1) -> None:
    """Raise ConfigError for a job with more workers or threads than launch.max_workers_per_core allows."""
    cores, max_per_core = usable_cores(), config.launch.max_workers_per_core
    most_workers, most_threads = max_per_core * cores * machines, max_per_core * cores
    for name, number, most in (
        ("workers", config.process_count, most_workers),
        ("threads_per_worker", config.threads_per_worker, most_threads),
    ):
        if number > most:
            each = f" of each of {machines} machines" if machines > 1 else ""
            raise ConfigError(
                f"{name}={number} on {cores} usable cores{each}: at most {most} are allowed; use fewer, "
                "or increase launch.max_workers_per_core"
            )


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested dictionaries by dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
