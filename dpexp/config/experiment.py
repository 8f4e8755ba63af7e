"""One experiment: a frozen dataclass, checked once, when it is built.

Values come from `conf/`; no field has a default here. Pydantic checks types and ranges, the methods
named `_check_*` check rules between fields. Inside the package these objects are trusted.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, TypeAdapter, model_validator
from pydantic.dataclasses import dataclass

from dpexp.config.groups import (
    STRICT,
    BatchConfig,
    DataConfig,
    LaunchConfig,
    MeasurementConfig,
    ModelConfig,
    OptimizerConfig,
    ScriptOptimizerConfig,
    TrackerConfig,
)
from dpexp.config.strategies import PLACEHOLDERS, ScriptConfig, StrategyConfig, strategies_where

# Training samples in the data sets whose size is known before anything is loaded.
KNOWN_TRAIN_SAMPLES = {"mnist": 60_000, "fashion_mnist": 60_000, "cifar10": 50_000}


@dataclass(frozen=True, config=STRICT)
class ExperimentConfig:
    """One job: what is trained, on what, by how many workers, and how it is measured."""

    workers: PositiveInt
    threads_per_worker: PositiveInt
    epochs: PositiveInt
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    dtype: Literal["float32", "float64"]
    device: Literal["cpu", "cuda"]
    linear_kernel: Literal["auto", "torch", "onednn"]
    checkpoint: bool
    target_accuracy: Annotated[float, Field(gt=0, lt=1)] | None
    model: ModelConfig
    data: DataConfig
    strategy: StrategyConfig
    optimizer: OptimizerConfig
    batch: BatchConfig
    measurement: MeasurementConfig
    launch: LaunchConfig
    tracker: TrackerConfig

    @property
    def settings(self) -> dict[str, Any]:
        """All values, nested as in the YAML files; a new dictionary at each call."""
        return _ADAPTER.dump_python(self, mode="json")  # type: ignore[no-any-return]

    @property
    def sha256(self) -> str:
        """The same for jobs that measure the same: watching, logging and caching don't count."""
        settings = self.settings
        del settings["launch"], settings["tracker"]
        settings["data"].pop("cache", None)
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    @property
    def train_samples(self) -> int:
        """Samples of one epoch, all workers together."""
        return self.data.size * (self.workers if self.data.scope == "per_worker" else 1)

    @property
    def global_batch_size(self) -> int:
        """Samples of one optimizer update, all workers together."""
        return self.batch.size * (self.workers if self.batch.scope == "per_worker" else 1)

    @property
    def local_batch_size(self) -> int:
        """Samples of one optimizer update, one worker."""
        return self.global_batch_size // self.workers

    @property
    def updates_per_epoch(self) -> int:
        """Optimizer updates of one epoch; the last may see a smaller batch."""
        return -(-self.train_samples // self.global_batch_size)

    @property
    def updates(self) -> int:
        """Optimizer updates of the whole training."""
        return self.epochs * self.updates_per_epoch

    @functools.cached_property
    def work_ratio(self) -> float:
        """Samples of an epoch over the sequential baseline's: 1, but in weak scaling."""
        return self.train_samples / self.baseline().train_samples

    @property
    def processes(self) -> int:
        """Worker processes of a training. A single worker of any strategy trains like a sequential process."""
        return self.workers if self.strategy.one_process_a_worker else 1

    @property
    def imports(self) -> tuple[str, ...]:
        """Modules of its workers that are slow to import, beside torch."""
        return (*self.strategy.imports, *self.model.imports)

    @property
    def busy_threads(self) -> int:
        """Threads that compute at the same time, on all machines together."""
        return self.processes * self.threads_per_worker

    @property
    def variants(self) -> dict[str, ExperimentConfig]:
        """The trainings of each block, by name: the candidate, and the baseline where it is paired."""
        variants = {"candidate": self}
        if self.measurement.baseline == "paired":
            variants["baseline"] = self.baseline()
        return variants

    def learning_rate(self, update: int) -> float:
        """The learning rate of update number `update`, from 0.

        `lr` belongs to the baseline's batch. The linear rule multiplies it by how many times as large this global
        batch is (Goyal et al. 2017, "Accurate, Large Minibatch SGD"), the square-root rule by the root of that
        (Krizhevsky 2014, "One weird trick"). Over `lr_warmup_epochs` it rises in equal steps from `lr` to that.
        """
        optimizer = self.optimizer
        assert not isinstance(optimizer, ScriptOptimizerConfig)
        if optimizer.lr_rule == "none":
            return optimizer.lr
        times = self.global_batch_size / self.batch.size
        factor: float = {"linear": times, "sqrt": times**0.5}[optimizer.lr_rule]
        warmup_updates = optimizer.lr_warmup_epochs * self.updates_per_epoch
        risen = min(1.0, update / warmup_updates) if warmup_updates else 1.0
        return optimizer.lr * (1 + (factor - 1) * risen)

    def worker_share(self) -> ExperimentConfig:
        """The sequential training of one worker's share of samples and batch."""
        size = self.data.size if self.data.scope == "per_worker" else self.data.size // self.workers
        return dataclasses.replace(
            self.baseline(),
            data=dataclasses.replace(self.data, size=size),
            batch=dataclasses.replace(self.batch, size=min(self.local_batch_size, size), scope="global"),
        )

    def baseline(self, threads: int | None = None) -> ExperimentConfig:
        """The same job for one sequential process, of as many threads as each worker has, or of `threads`."""
        if threads is not None:
            return dataclasses.replace(self._baseline, threads_per_worker=threads)
        return self._baseline

    @functools.cached_property
    def _baseline(self) -> ExperimentConfig:
        return dataclasses.replace(self, workers=1, strategy=self.strategy.sequential())

    @model_validator(mode="after")
    def _check_together(self) -> ExperimentConfig:
        self._check_script()
        most = self.strategy.most_workers
        if most is not None and self.workers > most:
            raise ValueError(
                f"workers={self.workers} with strategy={self.strategy.name}: it has one process and one worker; "
                f"set workers=1, or choose {strategies_where(lambda kind: kind.most_workers is None)}"
            )
        self.strategy.check_workers(self.workers)
        if self.device not in self.strategy.devices:
            raise ValueError(
                f"device={self.device} with strategy={self.strategy.name}: "
                f"choose {strategies_where(lambda kind: self.device in kind.devices)}"
            )
        if self.linear_kernel == "onednn" and (self.dtype, self.device) != ("float32", "cpu"):
            raise ValueError(
                f"linear_kernel=onednn with dtype={self.dtype} on device={self.device}: "
                "it multiplies float32 on the cpu only; choose linear_kernel=auto"
            )
        if self.global_batch_size % self.workers:
            fewer = self.batch.size // self.workers * self.workers
            choices = f"{fewer} or {fewer + self.workers}" if fewer else f"{self.workers}"
            raise ValueError(
                f"batch.size={self.batch.size} with batch.scope=global can't be split evenly over "
                f"workers={self.workers}: choose a multiple of {self.workers}, such as {choices}"
            )
        available = KNOWN_TRAIN_SAMPLES.get(self.data.name)
        if available is not None:
            check_size(self, available)
        if self.batch.size > self.data.size:
            raise ValueError(
                f"batch.size={self.batch.size} is more than data.size={self.data.size}: "
                "choose a smaller batch.size or a larger data.size"
            )
        if self.batch.accumulation > self.local_batch_size:
            raise ValueError(
                f"batch.accumulation={self.batch.accumulation}: a worker's batch of {self.local_batch_size} can't be "
                f"cut into so many parts; choose at most {self.local_batch_size}, or a larger batch.size"
            )
        if self.global_batch_size > self.train_samples:
            raise ValueError(
                f"batch.size={self.batch.size} x workers={self.workers} is a global batch of "
                f"{self.global_batch_size:,} samples, more than the {self.train_samples:,} of data.size: "
                "choose a smaller batch.size or a larger data.size"
            )
        if self.batch.sync_batchnorm and self.workers > 1:
            self._check_sync_batchnorm()
        return self

    def _check_sync_batchnorm(self) -> None:
        """Raise ValueError where not all samples of a batch pass through the model at the same time."""
        if not self.strategy.one_process_a_worker:
            raise ValueError(
                f"batch.sync_batchnorm=true with strategy={self.strategy.name}: its workers train one after the other; "
                f"choose {strategies_where(lambda kind: kind.one_process_a_worker)}"
            )
        if self.batch.accumulation > 1:
            raise ValueError(
                f"batch.sync_batchnorm=true with batch.accumulation={self.batch.accumulation}: "
                "a batch that passes in parts has no common statistics; set batch.accumulation=1"
            )
        last = self.train_samples % self.global_batch_size
        if 0 < last < self.workers:
            raise ValueError(
                f"batch.sync_batchnorm=true: the last batch has {last} of {self.train_samples:,} samples, fewer than "
                f"workers={self.workers}; choose another data.size"
            )

    @property
    def command(self) -> list[str]:
        """The words of a script's command, for this number of workers."""
        assert isinstance(self.strategy, ScriptConfig)
        return self.strategy.words({name: getattr(self, name) for name in PLACEHOLDERS})

    @property
    def script_words(self) -> set[str]:
        """The words of a script's command and of its baseline's; none of a training by our loop."""
        return {*self.command, *self.baseline().command} if isinstance(self.strategy, ScriptConfig) else set()

    def _check_script(self) -> None:
        """Raise ValueError where a script's settings are mixed with those of a training by our loop."""
        for group in ScriptConfig.brings:
            name, expected = getattr(self, group).name, group in self.strategy.brings
            if expected and name != "script":
                raise ValueError(f"{group}={name} with strategy=script: the script has its own; leave {group} out")
            if name == "script" and not expected:
                raise ValueError(f"{group}=script with strategy={self.strategy.name}: choose strategy=script")
        if not isinstance(self.strategy, ScriptConfig):
            return
        for name in ("checkpoint", "target_accuracy"):
            if value := getattr(self, name):
                raise ValueError(f"{name}={value} with strategy=script: only the script knows its weights and accuracy")
        if self.batch.accumulation > 1:
            raise ValueError(
                f"batch.accumulation={self.batch.accumulation} with strategy=script: the script has its own"
            )
        if self.batch.sync_batchnorm:
            raise ValueError("batch.sync_batchnorm=true with strategy=script: only the script knows its model")
        if self.workers > 1 and self.command == self.baseline().command:
            raise ValueError(
                f"strategy.command={self.strategy.command}: one worker and {self.workers} workers would run the same; "
                "write {workers} where the number of processes belongs"
            )


_ADAPTER = TypeAdapter(ExperimentConfig)


def from_settings(settings: dict[str, Any]) -> ExperimentConfig:
    """The experiment of some `ExperimentConfig.settings`. Raises pydantic's ValidationError."""
    return _ADAPTER.validate_json(json.dumps(settings))  # as JSON, where a list may become a tuple


def check_size(config: ExperimentConfig, available: int) -> None:
    """Raise ValueError when `config` asks for more training samples than the data set has."""
    if config.train_samples > available:
        parts = f"data.size={config.data.size}"
        if config.data.scope == "per_worker":
            parts += f" x workers={config.workers} = {config.train_samples:,}"
        raise ValueError(
            f"{parts}: {config.data.name} has {available:,} training samples; choose 1 to {available:,} in all"
        )
