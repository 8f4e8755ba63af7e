"""The built-in data sets: MNIST is in the package, torchvision downloads others, and one is synthetic."""

import contextlib
import functools
import hashlib
import io
import lzma
import math
from importlib import resources
from pathlib import Path

import numpy as np
import torch

from dpexp.config.groups import SyntheticDataConfig
from dpexp.errors import DataError, one_line
from dpexp.machine.environment import available_memory_bytes
from dpexp.machine.files import write_atomically


def mnist_split(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images (n, 1, 28, 28) and labels (n,) of "train" or "t10k", both uint8. Raises DataError."""
    images = np.frombuffer(_decoded(f"{split}-images-idx3-ubyte"), np.uint8, offset=16)
    labels = np.frombuffer(_decoded(f"{split}-labels-idx1-ubyte"), np.uint8, offset=8)
    return images.reshape(-1, 1, 28, 28), labels


@functools.cache  # it takes a second, and the jobs of a sweep share it
def _decoded(name: str) -> bytes:
    """Return the checked content of one of the packaged IDX files."""
    packed = resources.files("dpexp.train.data") / "mnist" / f"{name}.xz"
    try:
        return lzma.decompress(packed.read_bytes())  # which verifies its CRC64
    except (OSError, lzma.LZMAError) as error:
        raise DataError(f"the packaged file {packed} is damaged: {error}; install dpexp again") from error


def torchvision_split(name: str, train: bool, cache: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs (n, channels, height, width), uint8, and labels (n,) of a split of fashion_mnist or cifar10.

    Downloads it when it isn't there. Raises DataError.
    """
    from torchvision import datasets

    source = {"fashion_mnist": datasets.FashionMNIST, "cifar10": datasets.CIFAR10}[name]
    folder = cache / "torchvision"
    problems = (OSError, RuntimeError, EOFError, ValueError)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            split = source(str(folder), train=train, download=False)
        except problems as error:
            if "not found" not in str(error):
                raise DataError(f"data={name} in {folder} is damaged ({one_line(error)}): delete it") from error
            try:
                split = source(str(folder), train=train, download=True)
            except problems as error:
                raise DataError(
                    f"data={name} is not in {folder} and could not be downloaded ({one_line(error)}); "
                    "data=mnist and data=synthetic need no network"
                ) from error
    inputs, labels = np.asarray(split.data), np.asarray(split.targets, dtype=np.int64)
    _check_pinned(folder / f"{name}-{'train' if train else 'test'}.sha256", inputs, labels)
    return inputs.transpose(0, 3, 1, 2) if inputs.ndim == 4 else inputs[:, None], labels


def _check_pinned(pin: Path, inputs: np.ndarray, labels: np.ndarray) -> None:
    """Compare a split with its checksum from the first read; torchvision checks only some files."""
    digest = hashlib.sha256(np.ascontiguousarray(inputs).data)
    digest.update(labels.data)
    try:
        if not pin.exists():
            write_atomically(pin, digest.hexdigest())
        elif pin.read_text() != digest.hexdigest():
            raise DataError(f"{pin.stem} in {pin.parent} is damaged: its SHA-256 doesn't match {pin}; delete both")
    except OSError as error:
        raise DataError(f"can't write the data cache {pin}: {error.strerror}; set data.cache") from error


def synthetic_splits(config: SyntheticDataConfig, train_samples: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return Gaussian classes with seeded means: training and test samples, float32, with random labels."""
    samples = train_samples + config.test_size
    needed, available = 4 * samples * math.prod(config.shape), available_memory_bytes()
    if needed > available:
        raise DataError(
            f"data.size={config.size} samples of shape {config.shape} take {needed / 2**20:,.0f} MiB, but "
            f"only {available / 2**20:,.0f} MiB of memory are available: choose fewer samples"
        )
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(config.classes, *config.shape, generator=generator)
    # Two random unit-variance means lie sqrt(2 d) apart in d dimensions: scale them to the separation.
    means *= config.separation / (2 * means[0].numel()) ** 0.5

    def split(samples: int) -> tuple[np.ndarray, np.ndarray]:
        labels = torch.randint(config.classes, (samples,), generator=generator)
        inputs = torch.randn(samples, *config.shape, generator=generator)
        return inputs.add_(means[labels]).numpy(), labels.numpy()

    test = split(config.test_size)
    return [split(train_samples), test]
