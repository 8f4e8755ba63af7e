"""Synchronous data parallelism between processes of one machine, through shared memory.

All ranks share one copy of the parameters. Each shows the others its gradient. Then each adds up its own w-th of all
gradients and updates that part of the parameters, with that part of the optimizer's state: reduce-scatter and update
in one, as in ZeRO stage 1 (Rajbhandari et al. 2020), without a copy back.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from dpexp import optimizers
from dpexp.config import ExperimentConfig
from dpexp.environment import usable_cores
from dpexp.in_place import write_in_place
from dpexp.position import COMMUNICATE, UPDATE, WAIT
from dpexp.shared_memory import ALIGNMENT_BYTES, SharedTensors
from dpexp.strategies.barrier import BarrierSeat
from dpexp.strategies.base import Strategy

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


class ChunkSum:
    """Rank r's part in a reduce-scatter: the sum of all ranks' r-th chunk, in rank order."""

    def __init__(self, buffers: torch.Tensor, rank: int) -> None:
        """`buffers` (w, n), n divisible by w, are all ranks' gradients."""
        self._terms = [buffer.chunk(len(buffers))[rank] for buffer in buffers]
        # Ranks 0 and 1 may overwrite their own: it is read no later than the first sum is written.
        self.total = self._terms[rank] if rank < 2 else torch.empty_like(self._terms[rank])

    def compute(self) -> torch.Tensor:
        """The sum (n / w,), in memory that is used again. All gradients must have been written."""
        first, second, *others = self._terms
        torch.add(first, second, out=self.total)
        for term in others:
            self.total += term
        return self.total


class SyncDataParallel(Strategy):
    """One process a worker; sums in rank order, so that a run can be repeated to the bit.

    Replicas are equal by construction, as long as each model keeps using the shared parameters.
    """

    name = "sync_dp"

    def __init__(
        self, config: ExperimentConfig, rank: int, model: nn.Module, initial: SharedTensors, shared: Shared
    ) -> None:
        super().__init__(config, rank, model, initial, shared)
        self._seat = shared.seat
        self._meet = self.barrier
        flat, buffers = shared.arena["parameters"], shared.arena["gradients"]
        self._chunk = flat.chunk(config.workers)[rank]
        self._sum = ChunkSum(buffers, rank)
        self.places: dict[torch.Tensor, torch.Tensor] = {}  # of each parameter's gradient, in the arena
        position = 0
        for parameter in (p for p in model.parameters() if p.requires_grad):
            place = slice(position, position + parameter.numel())
            parameter.data = flat[place].view_as(parameter)
            self.places[parameter] = buffers[rank, place].view_as(parameter)
            position += parameter.numel()
        if config.model.name != "custom":
            write_in_place(model, self.places)

    @classmethod
    def processes(cls, workers: int) -> int:
        """One for each worker."""
        return workers

    @classmethod
    def share(cls, config: ExperimentConfig, initial: SharedTensors) -> list[Shared]:
        """The arena and the barrier; see Strategy."""
        dtype = getattr(torch, config.dtype)
        # All of the state: a bound on the trainable parameters that needs no model here.
        padded = padded_size(sum(t.numel() for t in initial.values()), config.workers, dtype)
        arena = SharedTensors.allocate(
            {"parameters": ((padded,), dtype), "gradients": ((config.workers, padded), dtype)}
        )
        return [Shared(seat, arena) for seat in BarrierSeat.create(config.workers, spin_seconds(config))]

    def start(self) -> None:
        """Load the initial state, each rank all of it (the same values); see Strategy."""
        self.barrier()  # nobody still reads or updates
        self.replicas[0].model.load_state_dict(self._initial)
        self.optimizers = [optimizers.build(self._config.optimizer, [self._chunk])]
        self.barrier()

    def update(self) -> None:
        """Publish the gradient; sum this rank's chunk of all and update that chunk; see Strategy."""
        enter = self.recorder.enter
        enter(COMMUNICATE)
        self._publish()
        enter(WAIT)
        self._meet()  # all gradients are published
        enter(COMMUNICATE)
        total = self._sum.compute()
        enter(UPDATE)
        self.optimizers[0].step([total])
        enter(COMMUNICATE)
        self._meet()  # all parameters are updated, all gradients read

    def barrier(self) -> None:
        """See Strategy."""
        super().barrier()
        self._seat.wait()

    def set_synchronized(self, synchronized: bool) -> None:
        """See Strategy."""
        self._meet = self.barrier if synchronized else lambda: None

    def _publish(self) -> None:
        """Copy those gradients into the arena that backward didn't write there."""
        places, gradients = [], []
        for parameter, place in self.places.items():
            gradient, parameter.grad = parameter.grad, None
            if gradient is None:  # no sample of this rank used the parameter
                place.zero_()
            elif gradient is not place:
                places.append(place)
                gradients.append(gradient)
        if places:
            torch._foreach_copy_(places, gradients)


def spin_seconds(config: ExperimentConfig) -> float:
    """How long to look before sleeping: not at all where somebody else needs the core."""
    return 0.0 if config.workers * config.threads_per_worker > usable_cores() else SPIN_SECONDS


def padded_size(elements: int, world_size: int, dtype: torch.dtype) -> int:
    """The next size that splits into `world_size` equal chunks of whole cache lines."""
    line = world_size * ALIGNMENT_BYTES // dtype.itemsize
    return -(-elements // line) * line
