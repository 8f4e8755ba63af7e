"""Training inputs that stay on disk: rows of a .npy file, which all workers read through the system's page cache."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch


@dataclass(frozen=True)
class MappedInputs:
    """Some rows of a file, with the part of a tensor's interface that a training needs."""

    path: Path
    dtype: torch.dtype  # that they are read as
    available: int  # rows of the file
    divisor: float = 1.0  # 255 for grey levels, which become [0, 1]
    rows: torch.Tensor | None = None  # of the file, int64 (n,), in shared memory; None: not chosen yet

    @classmethod
    def of(cls, array: np.memmap) -> MappedInputs:
        """All rows of a mapped array of numbers."""
        kinds = {"u1": torch.uint8, "f4": torch.float32}
        dtype = kinds.get(array.dtype.str[1:], torch.float64 if array.dtype.kind == "f" else torch.int64)
        return cls(Path(str(array.filename)), dtype, len(array))

    @functools.cached_property
    def _array(self) -> np.ndarray:
        """Mapped when it is first used in a process."""
        array: np.ndarray = np.load(self.path, mmap_mode="r")
        return array

    def __getstate__(self) -> dict[str, object]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all rows together."""
        return (len(self), *self._array.shape[1:])

    def __len__(self) -> int:
        return self.available if self.rows is None else len(self.rows)

    def as_type(self, dtype: torch.dtype) -> MappedInputs:
        """The same, read as `dtype`; grey levels are scaled where that is no integer."""
        scaled = self.dtype == torch.uint8 and dtype.is_floating_point
        return dataclasses.replace(self, dtype=dtype, divisor=255.0 if scaled else 1.0)

    def to(self, device: torch.device) -> MappedInputs:
        """Itself: it is on no device."""
        return self

    def index_select(self, dim: int, index: torch.Tensor) -> torch.Tensor:
        """The samples of these indices (k,), read from the file."""
        assert dim == 0
        assert self.rows is not None
        read = self._array[self.rows[index].numpy()]
        if read.dtype.kind == "u" and read.itemsize > 1:
            read = read.astype(np.int64)  # torch doesn't know all of these
        elif read.dtype.kind == "f" and read.itemsize > 8:
            read = read.astype(np.float64)
        inputs = torch.from_numpy(read.astype(read.dtype.newbyteorder("="), copy=False)).to(self.dtype)
        return inputs if self.divisor == 1 else inputs.div_(self.divisor)

    def __getitem__(self, part: slice) -> torch.Tensor:
        return self.index_select(0, torch.arange(len(self))[part])
