"""Tensors in one anonymous shared mapping: names can't collide, and nothing is left when a process dies."""

from __future__ import annotations

import errno
import math
import mmap
import os
from collections.abc import Mapping
from typing import Any

import torch

from dpexp.errors import WorkerError
from dpexp.machine.environment import available_memory_bytes
from dpexp.processes.descriptors import Descriptor

ALIGNMENT_BYTES = 64  # a cache line: tensors never share one
# Fill the page table at once: else a training faults at each page that it reads first, for some percent of its time.
FLAGS = mmap.MAP_SHARED | mmap.MAP_POPULATE

Layout = Mapping[str, tuple[tuple[int, ...], torch.dtype]]


class SharedTensors(dict[str, torch.Tensor]):
    """Tensors in memory pages that every process sees; the constructor maps them from a file.

    Pickling passes the file descriptor, so it works only while a worker process is being started.
    The memory is freed by the kernel when the last process that maps it is gone.
    """

    def __init__(self, file: Descriptor, layout: Layout) -> None:
        self.file, self._layout = file, dict(layout)
        offsets, total_bytes = _place(layout)
        mapping = mmap.mmap(file.fd, total_bytes, flags=FLAGS)
        super().__init__({name: _view(mapping, offsets[name], *shaped) for name, shaped in layout.items()})

    @classmethod
    def allocate(cls, layout: Layout) -> SharedTensors:
        """Allocate zeroed tensors of the given shapes and dtypes. Raises WorkerError if memory is short."""
        _, total_bytes = _place(layout)
        available = available_memory_bytes()
        try:
            if total_bytes > available:  # the kernel would kill a process instead of reporting an error
                raise OSError(errno.ENOMEM, f"{available / 2**20:,.0f} MiB are available")
            file = Descriptor(os.memfd_create("dpexp"))  # not in /dev/shm, so its size limit doesn't apply
            # Reserve the pages now: a shortage is an error here, and would be SIGBUS at first touch.
            os.posix_fallocate(file.fd, 0, total_bytes)
            return cls(file, layout)
        except OSError as error:
            raise WorkerError(
                f"not enough memory to share {total_bytes / 2**20:,.0f} MiB: {error.strerror}; "
                "choose a smaller data.size or model, or free memory"
            ) from error

    @classmethod
    def copy_of(cls, tensors: Mapping[str, torch.Tensor]) -> SharedTensors:
        """Return a shared copy of `tensors`."""
        shared = cls.allocate({name: (tuple(t.shape), t.dtype) for name, t in tensors.items()})
        for name, tensor in tensors.items():
            shared[name].copy_(tensor)
        return shared

    def __reduce__(self) -> tuple[Any, ...]:
        return SharedTensors, (self.file, self._layout)


def chunk_bounds(flat: torch.Tensor, ranks: int) -> list[int]:
    """Return where each rank's chunk begins, and where the last one ends: as even as cache lines allow."""
    line, elements = ALIGNMENT_BYTES // flat.itemsize, len(flat)
    inner = [min(round(elements * rank / ranks / line) * line, elements) for rank in range(1, ranks)]
    return [0, *inner, elements]


def _view(mapping: mmap.mmap, offset: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    count = math.prod(shape)
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(mapping, dtype=dtype, count=count, offset=offset).view(shape)


def _place(layout: Layout) -> tuple[dict[str, int], int]:
    """Return each tensor's offset in bytes, aligned, and the bytes of all tensors."""
    offsets, position = {}, 0
    for name, (shape, dtype) in layout.items():
        offsets[name] = position
        position += -(-math.prod(shape) * dtype.itemsize // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    return offsets, max(position, ALIGNMENT_BYTES)
