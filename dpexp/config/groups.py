"""The settings of each config group: types, ranges, and rules within one group. No field has a default here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from pydantic.dataclasses import dataclass

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

Fraction = Annotated[float, Field(ge=0, lt=1)]
Scope = Literal["per_worker", "global"]
LearningRateRule = Literal["none", "linear", "sqrt"]


@dataclass(frozen=True, config=STRICT)
class MlpConfig:
    """Fully connected layers with ReLU between them."""

    name: Literal["mlp"]
    hidden: tuple[PositiveInt, ...]


@dataclass(frozen=True, config=STRICT)
class CnnConfig:
    """3x3 convolutions, each with ReLU and 2x2 max-pooling, then one hidden layer."""

    name: Literal["cnn"]
    channels: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
    hidden: PositiveInt


@dataclass(frozen=True, config=STRICT)
class ResNet18Config:
    """torchvision's ResNet-18; `small_images` selects the CIFAR variant's 3x3 stem without pooling."""

    name: Literal["resnet18"]
    small_images: bool


@dataclass(frozen=True, config=STRICT)
class CustomModelConfig:
    """The user's own model: `builder` is `module:function`, called as `f(input_shape, classes, **arguments)`."""

    name: Literal["custom"]
    builder: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:\w+$")]
    arguments: dict[str, Any]


ModelConfig = Annotated[MlpConfig | CnnConfig | ResNet18Config | CustomModelConfig, Field(discriminator="name")]


@dataclass(frozen=True, config=STRICT)
class SizedConfig:
    """The number of training samples of an epoch: of each worker (per_worker), or of all together (global)."""

    size: PositiveInt
    scope: Scope


@dataclass(frozen=True, config=STRICT)
class MnistConfig(SizedConfig):
    """`size` samples of the training split and the whole test split of MNIST, which the package contains."""

    name: Literal["mnist"]


@dataclass(frozen=True, config=STRICT)
class DownloadedDataConfig(SizedConfig):
    """A data set that is downloaded into the folder `cache`."""

    name: Literal["fashion_mnist", "cifar10"]
    cache: str | None


@dataclass(frozen=True, config=STRICT)
class SyntheticDataConfig(SizedConfig):
    """Seeded Gaussian classes: `separation` is the distance between class means in standard deviations of the noise."""

    name: Literal["synthetic"]
    test_size: PositiveInt
    shape: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
    classes: Annotated[int, Field(ge=2)]
    separation: PositiveFloat


@dataclass(frozen=True, config=STRICT)
class ArraysDataConfig(SizedConfig):
    """The user's own data: train_inputs, train_labels, test_inputs and test_labels, as .npz or .npy files."""

    name: Literal["arrays"]
    path: str
    scale_uint8: bool


DataConfig = Annotated[
    MnistConfig | DownloadedDataConfig | SyntheticDataConfig | ArraysDataConfig, Field(discriminator="name")
]


@dataclass(frozen=True, config=STRICT)
class PlainStrategyConfig:
    """A strategy without settings."""

    name: Literal["sync_dp", "emulated", "sequential"]


@dataclass(frozen=True, config=STRICT)
class DdpConfig:
    """torch's DistributedDataParallel. `find_unused_parameters` is for models that leave parameters unused."""

    name: Literal["ddp"]
    find_unused_parameters: bool
    exchange: Literal["gloo", "shared_memory"]


StrategyConfig = Annotated[PlainStrategyConfig | DdpConfig, Field(discriminator="name")]


@dataclass(frozen=True, config=STRICT)
class SgdConfig:
    """torch.optim.SGD."""

    name: Literal["sgd"]
    lr: PositiveFloat
    lr_rule: LearningRateRule
    momentum: Fraction
    weight_decay: NonNegativeFloat
    nesterov: bool

    @model_validator(mode="after")
    def _check_nesterov(self) -> SgdConfig:
        if self.nesterov and self.momentum == 0:
            raise ValueError("optimizer.nesterov=true needs optimizer.momentum > 0, not 0")
        return self


@dataclass(frozen=True, config=STRICT)
class AdamConfig:
    """torch.optim.Adam, or AdamW with decoupled weight decay."""

    name: Literal["adam", "adamw"]
    lr: PositiveFloat
    lr_rule: LearningRateRule
    betas: tuple[Fraction, Fraction]
    eps: PositiveFloat
    weight_decay: NonNegativeFloat


OptimizerConfig = Annotated[SgdConfig | AdamConfig, Field(discriminator="name")]


@dataclass(frozen=True, config=STRICT)
class BatchConfig:
    """`size` samples per update, for each worker (per_worker) or for all together (global)."""

    size: PositiveInt
    scope: Scope


@dataclass(frozen=True, config=STRICT)
class MeasurementConfig:
    """How many blocks and warm-up steps, which other trainings are measured, and for how long."""

    repeats: PositiveInt
    warmup_steps: Annotated[int, Field(ge=2)]
    baseline: Literal["paired", "none"]
    best_sequential: bool
    whole_trainings: Literal["auto", "always", "never"]
    shared_memory: Literal["auto", "always", "never"]
    precision: PositiveFloat | None
    max_seconds: PositiveFloat | None

    @property
    def is_adaptive(self) -> bool:
        """Whether blocks are added until the speedup is known to `precision`."""
        return self.precision is not None and self.baseline == "paired"


@dataclass(frozen=True, config=STRICT)
class LaunchConfig:
    """Limits for worker processes: they are ended if none makes progress for `timeout_seconds`."""

    timeout_seconds: PositiveFloat
    max_workers_per_core: PositiveInt
