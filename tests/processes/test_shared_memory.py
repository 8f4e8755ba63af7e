"""Shared tensors: the same pages in every process, and no trace of them afterwards."""

from __future__ import annotations

import errno
import gc
import mmap
import os
import resource
from pathlib import Path

import pytest
import torch

from dpexp.errors import WorkerError
from dpexp.processes import launch
from dpexp.processes.shared_memory import ALIGNMENT_BYTES, SharedTensors
from dpexp.processes.world import WorldSpec


def write_rank(rank, shared, notify):
    shared["values"][rank] = rank + 1


def test_what_one_process_writes_another_sees():
    shared = SharedTensors.allocate({"values": ((3,), torch.float32)})
    launch.launch(WorldSpec(write_rank, [(shared,)] * 3))
    assert shared["values"].tolist() == [1, 2, 3]


def test_a_copy_keeps_shapes_dtypes_and_values():
    tensors = {"a": torch.arange(6).reshape(2, 3), "b": torch.tensor(2.5), "empty": torch.zeros(0, 4)}
    shared = SharedTensors.copy_of(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(shared[name], tensor)
        assert shared[name].dtype == tensor.dtype


def test_tensors_begin_on_cache_lines():
    shared = SharedTensors.allocate({"a": ((3,), torch.float32), "b": ((5,), torch.float64)})
    assert all(tensor.data_ptr() % ALIGNMENT_BYTES == 0 for tensor in shared.values())


def page_faults_of_reading(rank, shared, notify):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    shared["values"].max()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_a_training_meets_no_page_fault_where_it_first_reads_a_sample():
    pages = 10_000
    shared = SharedTensors.allocate({"values": ((pages * mmap.PAGESIZE,), torch.int8)})
    (faults,) = launch.launch(WorldSpec(page_faults_of_reading, [(shared,)]))
    assert faults < pages / 20


def test_nothing_has_a_name_in_shared_memory():
    before = set(Path("/dev/shm").iterdir())
    shared = SharedTensors.allocate({"a": ((1000,), torch.float32)})
    assert len(shared) == 1
    assert set(Path("/dev/shm").iterdir()) == before


def test_no_file_descriptor_is_left():
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(10):
        SharedTensors.allocate({"a": ((1000,), torch.float32)})
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1  # the mapping may keep its own


def test_a_mapping_that_fails_closes_its_descriptor_once(monkeypatch):
    def fail(descriptor, length, flags):
        mapped.append(descriptor)
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    mapped, closed, close = [], [], os.close
    monkeypatch.setattr("mmap.mmap", fail)
    monkeypatch.setattr(os, "close", lambda descriptor: (closed.append(descriptor), close(descriptor)))
    with pytest.raises(WorkerError, match="not enough memory"):
        SharedTensors.allocate({"a": ((10,), torch.float32)})
    gc.collect()
    assert [number for number in closed if number in mapped] == mapped  # others may be closed meanwhile


def test_too_little_memory_is_an_error_before_first_touch(monkeypatch):
    def full(descriptor, offset, length):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(WorkerError, match="not enough memory to share 4,096 MiB"):
        SharedTensors.allocate({"a": ((2**30,), torch.float32)})
