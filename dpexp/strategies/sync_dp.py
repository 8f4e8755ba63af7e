"""Synchronous data parallelism between processes of one machine, through shared memory.

All ranks share one copy of the parameters. Each writes its gradients to a buffer of its own. Then each
adds up one w-th of all buffers and updates that part of the parameters, with that part of the optimizer's
state: reduce-scatter and update in one, as in ZeRO stage 1 (Rajbhandari et al. 2020), without a copy back.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from dpexp import optimizers
from dpexp.config import ExperimentConfig
from dpexp.environment import usable_cores
from dpexp.shared_memory import ALIGNMENT_BYTES, SharedTensors
from dpexp.strategies.barrier import BarrierSeat
from dpexp.strategies.base import Replica, Strategy

SPIN_SECONDS = 50e-6  # about what it costs to wake a sleeping process


@dataclass(frozen=True)
class Shared:
    """What one rank is handed: its seat in the barrier, and the arena of all."""

    seat: BarrierSeat
    arena: SharedTensors  # parameters (n,), gradients (w, n), both padded

    def close(self) -> None:
        """Close the parent's descriptors."""
        self.seat.close()
        self.arena.close()


class SyncDataParallel(Strategy):
    """One process a worker; sums in rank order, so that a run can be repeated to the bit."""

    name = "sync_dp"

    def __init__(
        self, config: ExperimentConfig, rank: int, model: nn.Module, initial: SharedTensors, shared: Shared
    ) -> None:
        self.replicas = (Replica(rank, model),)
        self._config = config
        self._initial = initial
        self._seat = shared.seat
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        flat, gradients = shared.arena["parameters"], shared.arena["gradients"]
        for parameter, view in zip(self._parameters, _views(flat, self._parameters), strict=True):
            parameter.data = view
        self._gradient_views = _views(gradients[rank], self._parameters)
        chunk_size = len(flat) // config.workers
        mine = slice(rank * chunk_size, (rank + 1) * chunk_size)
        self._chunk = flat[mine]
        self._chunk_total = torch.zeros_like(self._chunk)
        self._chunk_gradients = list(gradients[:, mine])

    @classmethod
    def processes(cls, workers: int) -> int:
        """One for each worker."""
        return workers

    @classmethod
    def share(cls, config: ExperimentConfig, initial: SharedTensors) -> list[Shared]:
        """The arena and the barrier; see Strategy."""
        dtype = getattr(torch, config.dtype)
        padded = _padded_size(sum(t.numel() for t in initial.values()), config.workers, dtype)
        arena = SharedTensors.allocate(
            {"parameters": ((padded,), dtype), "gradients": ((config.workers, padded), dtype)}
        )
        busy = config.workers * config.threads_per_worker > usable_cores()
        seats = BarrierSeat.create(config.workers, 0.0 if busy else SPIN_SECONDS)
        return [Shared(seat, arena) for seat in seats]

    def start(self) -> None:
        """Load the initial state, each rank all of it (the same values); see Strategy."""
        self.barrier()  # nobody still reads or updates
        self.replicas[0].model.load_state_dict(self._initial)
        self._optimizer = optimizers.build(self._config.optimizer, [self._chunk])
        self.barrier()

    def update(self) -> None:
        """Publish gradients; sum and update this rank's part; see Strategy."""
        for parameter, view in zip(self._parameters, self._gradient_views, strict=True):
            if parameter.grad is None:  # an empty shard
                view.zero_()
            else:
                view.copy_(parameter.grad)
                parameter.grad = None
        self.barrier()  # all gradients are published
        total = self._chunk_total
        torch.add(self._chunk_gradients[0], self._chunk_gradients[1], out=total)
        for gradient in self._chunk_gradients[2:]:
            total += gradient
        self._optimizer.step([total])
        self.barrier()  # all parameters are updated, all gradients read

    def barrier(self) -> None:
        """Return when every rank has called it."""
        self._seat.wait()


def _views(flat: torch.Tensor, parameters: list[nn.Parameter]) -> list[torch.Tensor]:
    """Consecutive parts of `flat` in the shapes of `parameters`."""
    sizes = [parameter.numel() for parameter in parameters]
    parts = flat[: sum(sizes)].split(sizes)
    return [part.view_as(parameter) for part, parameter in zip(parts, parameters, strict=True)]


def _padded_size(elements: int, world_size: int, dtype: torch.dtype) -> int:
    """The next size that splits into `world_size` equal chunks of whole cache lines."""
    line = world_size * ALIGNMENT_BYTES // dtype.itemsize
    return -(-elements // line) * line
