"""The user's arrays, from an .npz file, or from a folder of .npy files whose training inputs stay on disk."""

from __future__ import annotations

import dataclasses
import zipfile
from pathlib import Path

import numpy as np
import torch

from dpexp.config.groups import ArraysDataConfig
from dpexp.data.mapped import MappedInputs
from dpexp.data.split import Split
from dpexp.errors import DataError, counted, first_line

NAMES = ("train_inputs", "train_labels", "test_inputs", "test_labels")
MAPPED = "train_inputs"


def array_splits(config: ArraysDataConfig) -> tuple[Split, Split]:
    """The user's arrays, checked: inputs (n, ...) of numbers, labels (n,) of integers from 0 up."""
    arrays = _read(Path(config.path))
    if missing := [name for name in NAMES if name not in arrays]:
        raise DataError(f"data.path={config.path} lacks {', '.join(missing)}: it must hold {', '.join(NAMES)}")
    train, test = _array_split(arrays, "train", config.path), _array_split(arrays, "test", config.path)
    if train[0].shape[1:] != test[0].shape[1:]:
        raise DataError(
            f"data.path={config.path}: train_inputs has samples of {tuple(train[0].shape[1:])}, test_inputs of "
            f"{tuple(test[0].shape[1:])}; they must be of one shape"
        )
    if config.scale_uint8 and (train.inputs.dtype == torch.uint8) != (test.inputs.dtype == torch.uint8):
        raise DataError(
            f"data.path={config.path}: only one of train_inputs and test_inputs is uint8, which is scaled to [0, 1]; "
            "give both the same type"
        )
    fractions = [split.inputs.dtype.is_floating_point or split.inputs.dtype == torch.uint8 for split in (train, test)]
    if fractions[0] != fractions[1]:
        raise DataError(
            f"data.path={config.path}: train_inputs are {train.inputs.dtype}, test_inputs {test.inputs.dtype}; "
            "give both the same type"
        )
    _check_labels(train.labels, test.labels, config.path)
    if config.scale_uint8:
        return train, test
    return _as_integers(train), _as_integers(test)


def _as_integers(split: Split) -> Split:
    inputs = split.inputs
    if isinstance(inputs, MappedInputs):
        return Split(dataclasses.replace(inputs, dtype=torch.int64), split.labels)
    return Split(inputs.to(torch.int64), split.labels)


def _read(path: Path) -> dict[str, np.ndarray]:
    """The arrays by name; of a folder, the training inputs mapped, and not read."""
    is_folder = path.is_dir()
    try:
        if is_folder:
            files = {name: path / f"{name}.npy" for name in NAMES}
            loaded = {
                name: np.load(file, mmap_mode="r" if name == MAPPED else None)
                for name, file in files.items()
                if file.exists()
            }
            if not all(isinstance(array, np.ndarray) for array in loaded.values()):
                raise ValueError("an .npz file by the name of .npy")
            return loaded
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except OSError as error:
        raise DataError(f"data.path={path}: {error.strerror or first_line(error)}") from error
    except (ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        how = "a .npy file there can't be read: it is" if is_folder else "can't be read as .npz: it is"
        writer = "numpy.save" if is_folder else "numpy.savez"
        raise DataError(f"data.path={path}: {how} damaged, or not written by {writer}") from error


def _array_split(arrays: dict[str, np.ndarray], split: str, path: str) -> Split:
    inputs, labels = arrays[f"{split}_inputs"], arrays[f"{split}_labels"]
    if inputs.ndim < 2 or inputs.dtype.kind not in "uif" or not len(inputs):
        raise DataError(
            f"data.path={path}: {split}_inputs is {inputs.dtype} {inputs.shape}; it must be numbers (n, ...)"
        )
    if labels.shape != (len(inputs),) or labels.dtype.kind not in "ui":
        raise DataError(
            f"data.path={path}: {split}_labels is {labels.dtype} {labels.shape}; it must be ({len(inputs)},) integers"
        )
    if isinstance(inputs, np.memmap):  # to look at all of it would take as long as to train
        return Split(MappedInputs.of(inputs), torch.from_numpy(labels.astype(np.int64)))
    if inputs.dtype.kind == "f" and (broken := int((~np.isfinite(inputs)).sum())):
        raise DataError(f"data.path={path}: {split}_inputs is NaN or infinite in {counted(broken, 'place')}")
    if inputs.dtype.kind == "u" and inputs.max() > np.iinfo(np.int64).max:
        raise DataError(f"data.path={path}: {split}_inputs has {inputs.max():,}; torch's integers end at 2^63 - 1")
    if inputs.dtype.kind in "ui" and inputs.dtype != np.uint8:
        inputs = inputs.astype(np.int64)  # torch knows neither all kinds of integers nor other byte orders
    elif inputs.dtype not in (np.uint8, np.float32):
        inputs = inputs.astype(np.float64)
    return Split(torch.from_numpy(inputs), torch.from_numpy(labels.astype(np.int64)))


def _check_labels(train: torch.Tensor, test: torch.Tensor, path: str) -> None:
    """Raise DataError unless the labels count classes from 0, and the training split has each of them."""
    present = torch.unique(train)
    least, most, count = int(present[0]), int(present[-1]), len(present)
    if least != 0 or most != count - 1 or count < 2:
        raise DataError(
            f"data.path={path}: train_labels has {counted(count, 'different value')} from {least:,} to {most:,}; they "
            "must be 0 to classes - 1, of two classes at least (numpy.unique(labels, return_inverse=True) numbers them)"
        )
    unknown = int(((test < 0) | (test > most)).sum())
    if unknown:
        raise DataError(f"data.path={path}: {unknown:,} of test_labels are not among train_labels' 0 to {most:,}")
