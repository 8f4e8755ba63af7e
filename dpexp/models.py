"""From a model's config to a torch module, and its seeded initial state in shared memory."""

from __future__ import annotations

import importlib
import itertools
import math

import torch
from torch import nn

from dpexp.config import ExperimentConfig
from dpexp.config_groups import CnnConfig, CustomModelConfig, MlpConfig, ModelConfig, ResNet18Config
from dpexp.data.dataset import Dataset
from dpexp.data.order import shard
from dpexp.errors import ConfigError, one_line
from dpexp.shared_memory import SharedTensors


def build(config: ModelConfig, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """A module from inputs (n, *input_shape) to logits (n, classes). Raises ConfigError."""
    match config:
        case MlpConfig():
            return _mlp(config, input_shape, classes)
        case CnnConfig():
            return _cnn(config, input_shape, classes)
        case ResNet18Config():
            return _resnet18(config, input_shape, classes)
        case CustomModelConfig():
            return _custom(config, input_shape, classes)


def initial_state(config: ExperimentConfig, dataset: Dataset) -> SharedTensors:
    """The seeded weights and buffers that every replica of every training of this job starts from.

    Raises ConfigError when the model doesn't fit the data, or can't train on the smallest shard.
    """
    torch.manual_seed(config.seed)
    model = build(config.model, dataset.input_shape, dataset.classes).to(getattr(torch, config.dtype))
    samples = _smallest_shard(config)
    name = f"model={config.model.name}"
    try:
        state = SharedTensors.copy_of(model.state_dict())
        logits = model(dataset.tensors["train_inputs"][:samples])
    except Exception as error:  # the user's model may raise anything
        raise ConfigError(
            f"{name} can't train on inputs of shape {(samples, *dataset.input_shape)}, the smallest share of "
            f"a batch that a worker gets here: {one_line(error)}"
        ) from error
    expected = (samples, dataset.classes)
    if not isinstance(logits, torch.Tensor) or logits.shape != expected:
        raise ConfigError(f"{name} returns {getattr(logits, 'shape', type(logits))}; it must be {expected} logits")
    return state


def _smallest_shard(config: ExperimentConfig) -> int:
    """Samples of the smallest non-empty shard of the last batch, the candidate's or a paired baseline's."""
    sizes = []
    for variant in config.variants.values():
        tail = variant.train_samples % variant.global_batch_size or variant.global_batch_size
        sizes += [len(shard(torch.empty(tail), rank, variant.workers)) for rank in range(variant.workers)]
    return min(size for size in sizes if size)


def _mlp(config: MlpConfig, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    widths = [math.prod(input_shape), *config.hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes))


def _cnn(config: CnnConfig, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    channels, height, width = _image_shape(config.name, input_shape)
    smallest = 2 ** len(config.channels)
    if min(height, width) < smallest:
        raise ConfigError(
            f"model=cnn with {len(config.channels)} poolings needs images of at least {smallest} x {smallest}, "
            f"not {height} x {width}: choose fewer model.channels"
        )
    layers: list[nn.Module] = []
    for outputs in config.channels:
        layers += [nn.Conv2d(channels, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        channels, height, width = outputs, height // 2, width // 2
    features = channels * height * width
    return nn.Sequential(
        *layers,
        nn.Flatten(),
        nn.Linear(features, config.hidden),
        nn.ReLU(),
        nn.Linear(config.hidden, classes),
    )


def _resnet18(config: ResNet18Config, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    from torchvision.models import resnet18

    channels, _, _ = _image_shape(config.name, input_shape)
    model: nn.Module = resnet18(num_classes=classes)
    if config.small_images:
        model.conv1 = nn.Conv2d(channels, 64, 3, stride=1, padding=1, bias=False)
        model.maxpool = nn.Identity()
    elif channels != 3:
        model.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    return model


def _custom(config: CustomModelConfig, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    module, function = config.builder.split(":")
    try:
        builder = getattr(importlib.import_module(module), function)
    except Exception as error:  # the user's module: anything
        raise ConfigError(
            f"model.builder={config.builder}: {one_line(error)}; it must be module:function, importable from here"
        ) from error
    try:
        model = builder(input_shape, classes, **config.arguments)
    except Exception as error:  # the user's code: anything
        raise ConfigError(
            f"model.builder={config.builder}: {one_line(error)} "
            f"(called with {input_shape}, {classes}, model.arguments={config.arguments})"
        ) from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model.builder={config.builder} returned {type(model).__name__}, not a torch module")
    return model


def _image_shape(name: str, input_shape: tuple[int, ...]) -> tuple[int, int, int]:
    if len(input_shape) != 3:
        raise ConfigError(f"model={name} needs samples of shape (channels, height, width), not {input_shape}")
    channels, height, width = input_shape
    return channels, height, width
