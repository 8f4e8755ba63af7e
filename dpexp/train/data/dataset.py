"""A data set as tensors in shared memory, loaded once by the parent process."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch

from dpexp.config.built_in import BuiltInConfig, check_size
from dpexp.config.groups import ArraysDataConfig, DownloadedDataConfig, MnistConfig, SyntheticDataConfig
from dpexp.errors import ConfigError, DataError, pluralize
from dpexp.machine.files import user_cache
from dpexp.processes.shared_memory import SharedTensors
from dpexp.train.data.arrays import GREY, array_splits, input_kind
from dpexp.train.data.sharding import subset
from dpexp.train.data.sources import mnist_split, synthetic_splits, torchvision_split

MAX_COPIED_BYTES = 2**29


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Training subset and test split: inputs (n, *input_shape) in the job's dtype or int64, labels (n,) int64."""

    config: BuiltInConfig  # the job that it was loaded for
    tensors: SharedTensors  # by split: train_inputs, train_labels, test_inputs, test_labels
    classes: int

    def copy_elsewhere(self) -> Dataset:
        """Return a copy in other memory if that is cheap, else this data set."""
        small = sum(tensor.nbytes for tensor in self.tensors.values()) <= MAX_COPIED_BYTES
        return dataclasses.replace(self, tensors=SharedTensors.copy_of(self.tensors)) if small else self

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self.tensors["test_inputs"].shape[1:])


def load(config: BuiltInConfig) -> Dataset:
    """Load the data set of a job. Raises DataError if it can't be loaded, ConfigError if it is too small."""
    (train_inputs, train_labels), (test_inputs, test_labels) = _splits(config)
    try:
        check_size(config, len(train_inputs))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    chosen = subset(len(train_inputs), config.train_samples, config.seed).numpy()
    numbers = input_kind(train_inputs, getattr(config.data, "scale_uint8", True))
    dtype = torch.int64 if numbers == "integers" else getattr(torch, config.dtype)
    arrays = {"train_inputs": train_inputs[chosen], "train_labels": train_labels[chosen]}
    arrays |= {"test_inputs": test_inputs, "test_labels": test_labels}
    layout = {name: (a.shape, dtype if name.endswith("inputs") else torch.int64) for name, a in arrays.items()}
    tensors = SharedTensors.allocate(layout)
    for name, array in arrays.items():
        with np.errstate(over="ignore"):  # overflow is checked below
            np.copyto(tensors[name].numpy(), array, casting="unsafe")
        if array.dtype.kind == "f" and (broken := int((~tensors[name].isfinite()).sum())):
            raise DataError(
                f"data={config.data.name}: {name} has {pluralize(broken, 'NaN or infinite value')} in "
                f"{config.dtype}; correct them, or set dtype=float64 for larger numbers"
            )
        if numbers == GREY and name.endswith("inputs"):
            tensors[name].div_(255)  # to [0, 1], as torchvision's ToTensor does
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    return Dataset(config, tensors, max(classes, getattr(config.data, "classes", 0)))


def _splits(config: BuiltInConfig) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return inputs (n, *shape) and labels (n,) of training and test split, as they come from their source."""
    match config.data:
        case MnistConfig():
            return [mnist_split(split) for split in ("train", "t10k")]
        case DownloadedDataConfig(name=name) as data:
            cache = Path(data.cache).expanduser() if data.cache else user_cache()
            return [torchvision_split(name, train, cache) for train in (True, False)]
        case SyntheticDataConfig() as data:
            return synthetic_splits(data, config.train_samples, config.seed)
        case ArraysDataConfig() as data:
            return array_splits(data)
