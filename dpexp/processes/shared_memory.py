"""Named tensors in one anonymous shared mapping: no name to collide, nothing left when a process dies."""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterator, Mapping
from multiprocessing import reduction
from typing import Any

import torch

from dpexp.errors import WorkerError
from dpexp.machine.environment import available_memory_bytes
from dpexp.machine.files import anonymous_file

ALIGNMENT_BYTES = 64  # a cache line: tensors never share one
# Fill the page table at once: else a training faults at each page that it reads first, for some percent of its time.
MAP_POPULATE = getattr(mmap, "MAP_POPULATE", 0)

Layout = Mapping[str, tuple[tuple[int, ...], torch.dtype]]


class SharedTensors(Mapping[str, torch.Tensor]):
    """Tensors that every process sees in the same memory pages.

    Pickling passes a file descriptor, so it works only while a worker process is being started.
    The memory is freed by the kernel when the last process that maps it is gone.
    """

    _descriptor = -1  # as long as it isn't open, or not ours to close

    def __init__(self, descriptor: int, layout: Layout) -> None:
        self._layout = dict(layout)
        offsets, total_bytes = _place(layout)
        mapping = mmap.mmap(descriptor, total_bytes, flags=mmap.MAP_SHARED | MAP_POPULATE)
        self._tensors = {name: _view(mapping, offsets[name], shape, dtype) for name, (shape, dtype) in layout.items()}
        self._descriptor = descriptor  # last: where the mapping fails, it stays the caller's to close

    @classmethod
    def allocate(cls, layout: Layout) -> SharedTensors:
        """Zeroed tensors of the given shapes and dtypes. Raises WorkerError when memory is short."""
        _, total_bytes = _place(layout)
        available = available_memory_bytes()
        if total_bytes > available:  # the kernel would rather kill somebody than say so
            raise WorkerError(
                f"no room for {total_bytes / 2**20:,.0f} MiB of shared memory: {available / 2**20:,.0f} MiB are "
                "available; choose a smaller data.size or model, or free memory"
            )
        descriptor = anonymous_file()
        try:
            # Reserve the pages now: a shortage is an error here, and would be SIGBUS at first touch.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(descriptor, 0, total_bytes)
            else:
                os.ftruncate(descriptor, total_bytes)
            return cls(descriptor, layout)
        except OSError as error:
            os.close(descriptor)
            raise WorkerError(
                f"no room for {total_bytes / 2**20:,.0f} MiB of shared memory: {error.strerror}; "
                "choose a smaller data.size or model, or free memory"
            ) from error

    @classmethod
    def copy_of(cls, tensors: Mapping[str, torch.Tensor]) -> SharedTensors:
        """A shared copy of `tensors`."""
        shared = cls.allocate({name: (tuple(t.shape), t.dtype) for name, t in tensors.items()})
        for name, tensor in tensors.items():
            shared[name].copy_(tensor)
        return shared

    @property
    def descriptor(self) -> int:
        """Of the memory, from which the constructor maps the same tensors in another process."""
        return self._descriptor

    def close(self) -> None:
        """Close the file descriptor; tensors stay usable as long as something refers to them."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        self.close()

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __enter__(self) -> SharedTensors:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        assert self._descriptor >= 0, "pickled after close"
        return _rebuild, (reduction.DupFd(self._descriptor), self._layout)


def _view(mapping: mmap.mmap, offset: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    count = math.prod(shape)
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(mapping, dtype=dtype, count=count, offset=offset).view(shape)


def _rebuild(duplicate: Any, layout: Layout) -> SharedTensors:
    shared = SharedTensors(duplicate.detach(), layout)
    shared.close()  # the mapping stays
    return shared


def _place(layout: Layout) -> tuple[dict[str, int], int]:
    """Each tensor's offset in bytes, aligned, and the bytes of all."""
    offsets, position = {}, 0
    for name, (shape, dtype) in layout.items():
        offsets[name] = position
        position += -(-math.prod(shape) * dtype.itemsize // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    return offsets, max(position, ALIGNMENT_BYTES)
