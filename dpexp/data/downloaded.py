"""fashion_mnist and cifar10: downloaded by torchvision on first use, then held to the checksum of that first time."""

from __future__ import annotations

import contextlib
import hashlib
import io
from pathlib import Path

import numpy as np
import torch

from dpexp.data.split import Split
from dpexp.errors import DataError, first_line
from dpexp.machine.files import write_atomically


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
                raise DataError(f"data={name} in {folder} is damaged ({first_line(error)}): delete it") from error
            try:
                split = source(str(folder), train=train, download=True)
            except problems as error:
                raise DataError(
                    f"data={name} is not in {folder} and could not be downloaded ({first_line(error)}); "
                    "data=mnist and data=synthetic need no network"
                ) from error
    _check_pinned(folder / f"{name}-{'train' if train else 'test'}.sha256", np.asarray(split.data), split.targets)
    inputs = torch.as_tensor(split.data)
    inputs = inputs.permute(0, 3, 1, 2) if inputs.dim() == 4 else inputs.unsqueeze(1)
    return Split(inputs, torch.as_tensor(split.targets))


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
