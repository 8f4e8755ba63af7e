"""Synchronous data parallelism between processes of one machine, through shared memory.

All ranks share one copy of the parameters. Each shows the others the parts of its gradient that they need. Then each
adds up its own w-th of all gradients and updates that part of the parameters, with that part of the optimizer's
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
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        flat, buffers = shared.arena["parameters"], shared.arena["gradients"]
        self._chunk = flat.chunk(config.workers)[rank]
        self._chunk_total = torch.zeros_like(self._chunk)
        first = rank * len(self._chunk)
        end = first + len(self._chunk)
        others = _pieces(self._parameters, 0, first) + _pieces(self._parameters, end, len(flat))
        self._published = [(piece, buffers[rank, piece.first : piece.end]) for piece in others]
        self._kept = _pieces(self._parameters, first, end)
        # What rank by rank adds up to each kept piece; None stands for this rank's own gradient.
        self._terms = [
            [None if r == rank else buffers[r, piece.first : piece.end] for r in range(config.workers)]
            for piece in self._kept
        ]
        self._totals = [self._chunk_total[piece.first - first : piece.end - first] for piece in self._kept]
        position = 0
        for parameter in self._parameters:
            parameter.data = flat[position : position + parameter.numel()].view_as(parameter)
            position += parameter.numel()

    @classmethod
    def processes(cls, workers: int) -> int:
        """One for each worker."""
        return workers

    @classmethod
    def share(cls, config: ExperimentConfig, initial: SharedTensors) -> list[Shared]:
        """The arena and the barrier; see Strategy."""
        dtype = getattr(torch, config.dtype)
        # All of the state: a bound on the trainable parameters that needs no model here.
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
        """Publish the gradient, but for this rank's part; sum and update that part; see Strategy."""
        for piece, view in self._published:
            view.copy_(piece.gradient())
        self.barrier()  # all gradients are published
        for piece, terms, total in zip(self._kept, self._terms, self._totals, strict=True):
            first, second, *others = [piece.gradient() if term is None else term for term in terms]
            torch.add(first, second, out=total)
            for term in others:
                total += term
        self._optimizer.step([self._chunk_total])
        for parameter in self._parameters:
            parameter.grad = None
        self.barrier()  # all parameters are updated, all gradients read

    def barrier(self) -> None:
        """Return when every rank has called it."""
        self._seat.wait()


@dataclass(frozen=True)
class _Piece:
    """A run of one parameter's elements, and where it lies in the flat layout of all parameters."""

    parameter: nn.Parameter
    start: int  # in the parameter
    first: int  # in the layout
    end: int

    def gradient(self) -> torch.Tensor:
        """The piece of the gradient (end - first,); zeros where no sample of this rank used the parameter."""
        if self.parameter.grad is None:
            return torch.zeros(self.end - self.first, dtype=self.parameter.dtype)
        return self.parameter.grad.reshape(-1)[self.start : self.start + self.end - self.first]


def _pieces(parameters: list[nn.Parameter], first: int, end: int) -> list[_Piece]:
    """The pieces that make up elements `first` to `end` of the parameters laid out one after the other."""
    pieces = []
    position = 0
    for parameter in parameters:
        begin, stop = max(first, position), min(end, position + parameter.numel())
        if begin < stop:
            pieces.append(_Piece(parameter, begin - position, begin, stop))
        position += parameter.numel()
    return pieces


def _padded_size(elements: int, world_size: int, dtype: torch.dtype) -> int:
    """The next size that splits into `world_size` equal chunks of whole cache lines."""
    line = world_size * ALIGNMENT_BYTES // dtype.itemsize
    return -(-elements // line) * line
