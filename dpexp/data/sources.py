"""Where samples come from besides the packaged MNIST: torchvision, a seeded generator, a file."""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import zipfile
from pathlib import Path

import numpy as np
import torch

from dpexp.config_groups import ArraysDataConfig, SyntheticDataConfig
from dpexp.environment import available_memory_bytes
from dpexp.errors import DataError
from dpexp.files import write_atomically

Split = tuple[torch.Tensor, torch.Tensor]  # inputs (n, *shape), labels (n,)


def torchvision_split(name: str, train: bool, cache: Path) -> Split:
    """One split of fashion_mnist or cifar10, uint8 inputs; downloads it when it isn't there."""
    from torchvision import datasets

    source = {"fashion_mnist": datasets.FashionMNIST, "cifar10": datasets.CIFAR10}[name]
    folder = cache / "torchvision"
    problems = (OSError, RuntimeError, EOFError, ValueError)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            split = source(str(folder), train=train, download=False)
        except problems as error:
            if "not found" not in str(error):
                raise DataError(f"data={name} in {folder} is damaged ({_first_line(error)}): delete it") from error
            try:
                split = source(str(folder), train=train, download=True)
            except problems as error:
                raise DataError(
                    f"data={name} is not in {folder} and could not be downloaded ({_first_line(error)}); "
                    "data=mnist and data=synthetic need no network"
                ) from error
    _check_pinned(folder / f"{name}-{'train' if train else 'test'}.sha256", np.asarray(split.data), split.targets)
    inputs = torch.as_tensor(split.data)
    inputs = inputs.permute(0, 3, 1, 2) if inputs.dim() == 4 else inputs.unsqueeze(1)
    return inputs, torch.as_tensor(split.targets)


def _check_pinned(pin: Path, data: np.ndarray, targets: object) -> None:
    """Hold a split to the checksum that it had when it was first read: not all of torchvision's files have one."""
    digest = hashlib.sha256(np.ascontiguousarray(data).data)
    digest.update(np.asarray(targets, dtype=np.int64).data)
    try:
        if not pin.exists():
            write_atomically(pin, digest.hexdigest())
        elif pin.read_text() != digest.hexdigest():
            raise DataError(f"{pin.stem} in {pin.parent} is damaged: its SHA-256 isn't the one of {pin}; delete both")
    except OSError as error:
        raise DataError(f"can't write the data cache {pin}: {error.strerror}; set data.cache") from error


def synthetic_splits(config: SyntheticDataConfig, train_samples: int, seed: int) -> tuple[Split, Split]:
    """Gaussian classes with seeded means: training and test samples, float32, labels uniform at random."""
    samples = train_samples + config.test_size
    needed, available = 4 * samples * math.prod(config.shape), available_memory_bytes()
    if needed > available:
        raise DataError(
            f"data.size={config.size} samples of shape {config.shape} take {needed / 2**20:,.0f} MiB, and "
            f"{available / 2**20:,.0f} MiB of memory are available: choose fewer"
        )
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(config.classes, *config.shape, generator=generator)
    # Two random unit-variance means lie sqrt(2 d) apart in d dimensions: scale them to the separation.
    means *= config.separation / (2 * means[0].numel()) ** 0.5

    def split(samples: int) -> Split:
        labels = torch.randint(config.classes, (samples,), generator=generator)
        inputs = torch.randn(samples, *config.shape, generator=generator)
        return inputs.add_(means[labels]), labels

    try:
        test = split(config.test_size)
        return split(train_samples), test
    except RuntimeError as error:  # of torch's allocator
        raise DataError(
            f"data.size={config.size} samples of shape {config.shape} don't fit into memory: choose fewer"
        ) from error


def array_splits(config: ArraysDataConfig) -> tuple[Split, Split]:
    """The user's arrays, checked: inputs (n, ...) of numbers, labels (n,) of integers from 0 up."""
    path = Path(config.path).expanduser()
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(f"data.path={config.path}: can't be read as .npz ({_first_line(error)})") from error
    names = ("train_inputs", "train_labels", "test_inputs", "test_labels")
    if missing := [name for name in names if name not in arrays]:
        raise DataError(f"data.path={config.path} lacks {', '.join(missing)}: it must hold {', '.join(names)}")
    train, test = _array_split(arrays, "train", config.path), _array_split(arrays, "test", config.path)
    if train[0].shape[1:] != test[0].shape[1:]:
        raise DataError(
            f"data.path={config.path}: train_inputs has samples of {tuple(train[0].shape[1:])}, test_inputs of "
            f"{tuple(test[0].shape[1:])}; they must be of one shape"
        )
    return train, test


def _array_split(arrays: dict[str, np.ndarray], split: str, path: str) -> Split:
    inputs, labels = arrays[f"{split}_inputs"], arrays[f"{split}_labels"]
    if inputs.ndim < 2 or inputs.dtype.kind not in "uif" or not len(inputs):
        raise DataError(
            f"data.path={path}: {split}_inputs is {inputs.dtype} {inputs.shape}; it must be numbers (n, ...)"
        )
    if labels.shape != (len(inputs),) or labels.dtype.kind not in "ui" or labels.min() < 0:
        raise DataError(
            f"data.path={path}: {split}_labels is {labels.dtype} {labels.shape}; it must be "
            f"({len(inputs)},) integers from 0"
        )
    if inputs.dtype not in (np.uint8, np.float32):  # torch knows neither all kinds of numbers nor other byte orders
        inputs = inputs.astype(np.float64)
    return torch.from_numpy(inputs), torch.from_numpy(labels.astype(np.int64))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(":")
