"""Gradients of DistributedDataParallel in shared memory, for users' programs: see `use_shared_memory`."""

from dpexp.exchange.comm_hook import SharedMemoryGroup, use_shared_memory

__all__ = ["SharedMemoryGroup", "use_shared_memory"]
