"""Gradients of DistributedDataParallel in shared memory, for users' programs: see `use_shared_memory`."""

from dpexp.exchange.hook import Team, use_shared_memory

__all__ = ["Team", "use_shared_memory"]
