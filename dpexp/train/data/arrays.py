"""The user's arrays, from an .npz file, or from a folder of .npy files, of which only the samples of a job are read."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dpexp.config.groups import ArraysDataConfig
from dpexp.errors import DataError, one_line, pluralize

NAMES = ("train_inputs", "train_labels", "test_inputs", "test_labels")
GREY = "uint8 grey levels"


def array_splits(config: ArraysDataConfig) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return inputs (n, ...) and labels (n,) of training and test split; a folder's stay on disk. Raises DataError."""
    try:
        arrays = _read(Path(config.path))
        _check(arrays, config.scale_uint8)
    except OSError as error:
        raise DataError(f"data.path={config.path}: {error.strerror or one_line(error)}") from error
    except ValueError as error:
        raise DataError(f"data.path={config.path}: {error}") from error
    return [(arrays[f"{split}_inputs"], arrays[f"{split}_labels"]) for split in ("train", "test")]


def input_kind(inputs: np.ndarray, scale_uint8: bool) -> str:
    """Return what the numbers are: grey levels, integers such as token ids, or floating-point numbers."""
    if inputs.dtype == np.uint8 and scale_uint8:
        return GREY
    return "integers" if inputs.dtype.kind in "ui" else "floating-point numbers"


def _read(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays by name. Raises OSError, or ValueError for files that numpy didn't write."""
    try:
        if path.is_dir():
            files = {name: path / f"{name}.npy" for name in NAMES}
            return {name: np.lib.format.open_memmap(file, "r") for name, file in files.items() if file.exists()}
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        expected = ".npy files" if path.is_dir() else "an .npz file"
        raise ValueError(f"can't be read as {expected}: damaged, or not written by numpy") from error


def _check(arrays: Mapping[str, np.ndarray], scale_uint8: bool) -> None:
    """Raise ValueError unless inputs are numbers of one kind and shape, and labels count classes from 0."""
    if missing := [name for name in NAMES if name not in arrays]:
        raise ValueError(f"no {', '.join(missing)}: it must contain {', '.join(NAMES)}")
    train, train_labels, test, test_labels = (arrays[name] for name in NAMES)
    for split, inputs, labels in (("train", train, train_labels), ("test", test, test_labels)):
        if inputs.ndim < 2 or inputs.dtype.kind not in "uif" or not len(inputs):
            raise ValueError(f"{split}_inputs: {inputs.dtype} of {inputs.shape}; must be (n, ...) numbers")
        if labels.shape != (len(inputs),) or labels.dtype.kind not in "ui":
            raise ValueError(f"{split}_labels: {labels.dtype} of {labels.shape}; must be ({len(inputs)},) integers")
        if inputs.dtype.kind == "u" and inputs.itemsize == 8 and inputs.max() > np.iinfo(np.int64).max:
            raise ValueError(f"{split}_inputs has {inputs.max():,}; torch's integers end at 2^63 - 1")
    if train.shape[1:] != test.shape[1:]:
        raise ValueError(
            f"train_inputs has samples of {train.shape[1:]}, test_inputs of {test.shape[1:]}; the shapes must be equal"
        )
    kinds = input_kind(train, scale_uint8), input_kind(test, scale_uint8)
    if kinds[0] != kinds[1]:
        raise ValueError(f"train_inputs are {kinds[0]}, test_inputs {kinds[1]}; give both the same type")
    present = np.unique(train_labels)
    least, most, count = int(present[0]), int(present[-1]), len(present)
    if least != 0 or most != count - 1 or count < 2:
        raise ValueError(
            f"train_labels has {pluralize(count, 'different value')} from {least:,} to {most:,}; labels "
            "must run from 0 to classes - 1, with at least two classes (numpy.unique(labels, return_inverse=True) "
            "numbers them)"
        )
    if unknown := int(((test_labels < 0) | (test_labels > most)).sum()):
        raise ValueError(f"{unknown:,} test labels are not in the range of train_labels, 0 to {most:,}")
