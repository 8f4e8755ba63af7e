"""A data set as tensors in shared memory, loaded once by the parent process."""

from __future__ import annotations

import dataclasses

import torch

from dpexp.config.experiment import ExperimentConfig, check_size
from dpexp.config.groups import ArraysDataConfig, NamedDataConfig, SyntheticDataConfig
from dpexp.data.arrays import array_splits
from dpexp.data.downloaded import torchvision_split
from dpexp.data.mapped import MappedInputs
from dpexp.data.packaged import cache_folder, read_split
from dpexp.data.sharding import subset
from dpexp.data.split import Split
from dpexp.data.synthetic import synthetic_splits
from dpexp.errors import ConfigError, DataError
from dpexp.processes.shared_memory import SharedTensors

MOST_COPIED_BYTES = 2**29


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Training subset and test split: inputs (n, *input_shape) in the job's dtype or int64, labels (n,) int64."""

    source: ExperimentConfig  # the job that it was loaded for
    tensors: SharedTensors  # all but training inputs that stay on disk
    classes: int
    mapped: MappedInputs | None = None

    @property
    def train_inputs(self) -> torch.Tensor | MappedInputs:
        """In memory or on disk."""
        if self.mapped is None:
            return self.tensors["train_inputs"]
        return dataclasses.replace(self.mapped, rows=self.tensors["train_rows"])

    def placed_anew(self) -> Dataset:
        """A copy in other memory, as far as that is cheap; else this one."""
        small = sum(tensor.nbytes for tensor in self.tensors.values()) <= MOST_COPIED_BYTES
        return dataclasses.replace(self, tensors=SharedTensors.copy_of(self.tensors)) if small else self

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return tuple(self.train_inputs.shape[1:])


def load(config: ExperimentConfig) -> Dataset:
    """The data set of a job. Raises DataError when it can't be loaded, ConfigError when it is too small."""
    (train_inputs, train_labels), (test_inputs, test_labels) = _splits(config)
    try:
        check_size(config, len(train_inputs))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    chosen = subset(len(train_inputs), config.train_samples, config.seed)
    # Integers are token ids, and stay what they are; uint8 are grey levels.
    dtype = torch.int64 if train_inputs.dtype == torch.int64 else getattr(torch, config.dtype)
    mapped = train_inputs.as_type(dtype) if isinstance(train_inputs, MappedInputs) else None
    assert isinstance(test_inputs, torch.Tensor)
    parts = {
        "train_labels": (train_labels[chosen], torch.int64),
        "test_inputs": (test_inputs, dtype),
        "test_labels": (test_labels, torch.int64),
    }
    if isinstance(train_inputs, torch.Tensor):
        parts["train_inputs"] = (train_inputs[chosen], dtype)
    else:
        parts["train_rows"] = (chosen, torch.int64)
    tensors = SharedTensors.allocate({name: (tuple(t.shape), kind) for name, (t, kind) in parts.items()})
    for name, (tensor, _) in parts.items():
        tensors[name].copy_(tensor)
        if tensor.dtype == torch.float64 and not tensors[name].isfinite().all():
            raise DataError(f"data={config.data.name}: {name} has values beyond float32; set dtype=float64")
        if tensor.dtype == torch.uint8 and name.endswith("inputs"):
            tensors[name].div_(255)  # grey levels to [0, 1], as torchvision's ToTensor does
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    return Dataset(config, tensors, max(classes, getattr(config.data, "classes", 0)), mapped)


def _splits(config: ExperimentConfig) -> tuple[Split, Split]:
    match config.data:
        case NamedDataConfig(name="mnist") as data:
            splits = [read_split(name, cache_folder(data.cache)) for name in ("train", "t10k")]
            train, test = (Split(torch.tensor(images).unsqueeze(1), torch.tensor(labels)) for images, labels in splits)
            return train, test
        case NamedDataConfig() as data:
            cache = cache_folder(data.cache)
            return torchvision_split(data.name, True, cache), torchvision_split(data.name, False, cache)
        case SyntheticDataConfig() as data:
            return synthetic_splits(data, config.train_samples, config.seed)
        case ArraysDataConfig() as data:
            return array_splits(data)
