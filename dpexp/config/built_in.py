"""The configuration of a built-in training, checked once, when it is built."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, TypeAdapter, model_validator
from pydantic.dataclasses import dataclass

from dpexp.config.groups import (
    STRICT,
    DataConfig,
    DdpConfig,
    ModelConfig,
    OptimizerConfig,
    PlainStrategyConfig,
    StrategyConfig,
)
from dpexp.config.job import BASELINE, CANDIDATE, JobConfig
from dpexp.config.script import ScriptConfig

# Training samples in the data sets whose size is known before anything is loaded.
KNOWN_TRAIN_SAMPLES = {"mnist": 60_000, "fashion_mnist": 60_000, "cifar10": 50_000}
ONE_PROCESS = ("sequential", "emulated")  # strategies with a single process for all workers


@dataclass(frozen=True, config=STRICT)
class BuiltInConfig(JobConfig):
    """What is trained, on which data, and how workers combine their gradients."""

    data: DataConfig
    dtype: Literal["float32", "float64"]
    model: ModelConfig
    strategy: StrategyConfig
    optimizer: OptimizerConfig
    target_accuracy: Annotated[float, Field(gt=0, lt=1)] | None
    checkpoint: bool

    default_max_seconds: ClassVar[tuple[float, float]] = (9.0, 36.0)

    @property
    def table_settings(self) -> dict[str, str]:
        """The names of strategy, model, data and exchange, and data.scope."""
        names = {"strategy": self.strategy.name, "model": self.model.name, "data": self.data.name}
        return names | {"data_scope": self.data.scope, "exchange": getattr(self.strategy, "exchange", "")}

    @property
    def process_count(self) -> int:
        """Worker processes of a training. A single worker of any strategy trains like a sequential process."""
        return self.workers if self.strategy.name not in ONE_PROCESS else 1

    @property
    def whole_training_configs(self) -> dict[str, BuiltInConfig]:
        """The trainings that are also run as a whole, by arm: the candidate, and the baseline if it is measured."""
        paired = self.measurement.baseline == "paired"
        return {CANDIDATE: self} | ({BASELINE: self.baseline()} if paired else {})

    @property
    def learning_rate(self) -> float:
        """The learning rate, scaled by optimizer.lr_rule from the baseline's batch to this global batch.

        The linear rule multiplies it by the ratio of the batches (Goyal et al. 2017, "Accurate, Large Minibatch SGD"),
        the square-root rule by the root of that (Krizhevsky 2014, "One weird trick").
        """
        times = self.global_batch_size / self.batch.size
        factors: dict[str, float] = {"none": 1.0, "linear": times, "sqrt": times**0.5}
        return self.optimizer.lr * factors[self.optimizer.lr_rule]

    def baseline(self, threads: int | None = None) -> BuiltInConfig:
        """Return the job of one sequential process, with the threads of a worker, or with `threads`."""
        threads = self.threads_per_worker if threads is None else threads
        return dataclasses.replace(
            self, workers=1, threads_per_worker=threads, strategy=PlainStrategyConfig(name="sequential")
        )

    def with_shared_memory(self) -> BuiltInConfig | None:
        """Return the training with gradients exchanged in shared memory; None if it can't, or does so already."""
        strategy = self.strategy
        if self.workers == 1 or not isinstance(strategy, DdpConfig) or strategy.exchange != "gloo":
            return None
        return dataclasses.replace(self, strategy=dataclasses.replace(strategy, exchange="shared_memory"))

    @model_validator(mode="after")
    def _check_together(self) -> BuiltInConfig:
        if self.strategy.name == "sequential" and self.workers > 1:
            raise ValueError(
                f"workers={self.workers} with strategy=sequential: this strategy has one process and one worker; "
                "set workers=1, or choose strategy=sync_dp, ddp or emulated"
            )
        self.check_batch()
        available = KNOWN_TRAIN_SAMPLES.get(self.data.name)
        if available is not None:
            check_size(self, available)
        if self.batch.size > self.data.size:
            raise ValueError(
                f"batch.size={self.batch.size} is more than data.size={self.data.size}: "
                "choose a smaller batch.size or a larger data.size"
            )
        if self.global_batch_size > self.train_samples:
            raise ValueError(
                f"batch.size={self.batch.size} x workers={self.workers} is a global batch of "
                f"{self.global_batch_size:,} samples, more than the {self.train_samples:,} of data.size: "
                "choose a smaller batch.size or a larger data.size"
            )
        return self


BUILT_IN = "built_in"  # a kind of job; the other is "script"


def _kind(value: Any) -> str:
    settings = value if isinstance(value, dict) else getattr(value, "__dict__", {})
    return "script" if "script" in settings else BUILT_IN


AnyConfig = Annotated[
    Annotated[BuiltInConfig, Tag(BUILT_IN)] | Annotated[ScriptConfig, Tag("script")], Discriminator(_kind)
]


def from_settings(settings: dict[str, Any]) -> BuiltInConfig | ScriptConfig:
    """Return the job of the given `JobConfig.settings`. Raises pydantic's ValidationError."""
    kind: Any = ScriptConfig if "script" in settings else BuiltInConfig
    config: BuiltInConfig | ScriptConfig = TypeAdapter(kind).validate_json(json.dumps(settings))
    return config  # from JSON, where a list may become a tuple


def check_size(config: BuiltInConfig, available: int) -> None:
    """Raise ValueError when `config` asks for more training samples than the data set has."""
    if config.train_samples > available:
        parts = f"data.size={config.data.size}"
        if config.data.scope == "per_worker":
            parts += f" x workers={config.workers} = {config.train_samples:,}"
        raise ValueError(
            f"{parts}: {config.data.name} has {available:,} training samples; choose 1 to {available:,} in total"
        )
