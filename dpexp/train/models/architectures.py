"""From a model's configuration to a torch module."""

import itertools
import math
import pkgutil

import torch
from torch import nn

from dpexp.config.groups import CnnConfig, CustomModelConfig, MlpConfig, ModelConfig, ResNet18Config
from dpexp.errors import USER_CODE_ERRORS, ConfigError, one_line


def build_model(
    config: ModelConfig, input_shape: tuple[int, ...], classes: int, dtype: torch.dtype = torch.float32
) -> nn.Module:
    """Return a module from inputs (n, *input_shape) to logits (n, classes). Raises ConfigError.

    Its tensors of torch's default dtype are converted to `dtype`; others, such as complex ones, stay.
    """
    model: nn.Module
    match config:
        case MlpConfig():
            model = _mlp(config, input_shape, classes)
        case CnnConfig():
            model = _cnn(config, input_shape, classes)
        case ResNet18Config():
            model = _resnet18(config, input_shape, classes)
        case CustomModelConfig():
            model = _custom(config, input_shape, classes)
    default = torch.get_default_dtype()
    model._apply(lambda tensor: tensor.to(dtype) if tensor.dtype == default else tensor)
    return model


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
        *layers, nn.Flatten(), nn.Linear(features, config.hidden), nn.ReLU(), nn.Linear(config.hidden, classes)
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
    try:
        model = pkgutil.resolve_name(config.builder)(input_shape, classes, **config.arguments)
    except USER_CODE_ERRORS as error:
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
