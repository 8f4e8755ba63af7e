"""Synchronous data parallelism between processes of one machine, through shared memory.

All ranks share one copy of the parameters. In each step, a rank publishes its gradient in shared memory. When all have,
rank r adds up the r-th chunk of all gradients and updates that chunk of the parameters, with that chunk of the
optimizer's state. When all have, the next step begins. That is a reduce-scatter and a sharded update, as in ZeRO stage
1 (Rajbhandari et al. 2020), without an all-gather.

With more workers than cores, the ranks of a core add up their gradients one after the other, and the last of them does
the rest, as one rank; see core_sharing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from dpexp.config.experiment import ExperimentConfig
from dpexp.models import optimizers
from dpexp.processes.barrier import BarrierMember
from dpexp.processes.shared_memory import ALIGNMENT_BYTES, Layout, SharedTensors
from dpexp.results.phases import COMMUNICATE, UPDATE, WAIT
from dpexp.strategies.base import MOST_NUMBERS, Strategy
from dpexp.strategies.core_sharing import CoreTurn, group_count, spin_seconds, stay_on_a_core
from dpexp.strategies.reduce_scatter import ReduceScatter, move

GATHERED_AT_ONCE = 4096  # numbers of a rank


@dataclass(frozen=True)
class Shared:
    """What one rank of a machine receives: its part of the barriers, and the memory that all share."""

    local_rank: int
    threads: int  # that compute on this machine, of all ranks together
    barrier: BarrierMember  # of all ranks
    arena: SharedTensors  # see arena_layout
    turn: CoreTurn
    groups_barrier: BarrierMember  # of the last rank of each group that shares a core

    @classmethod
    def create(
        cls, config: ExperimentConfig, initial: SharedTensors, ranks: int, threads: int, groups: int
    ) -> list[Shared]:
        """The parts of so many ranks with so many threads in so many groups, all on one machine."""
        arena = SharedTensors.allocate(arena_layout(config, initial, groups))
        members = BarrierMember.create(ranks, spin_seconds(threads))
        of_groups = members if groups == ranks else BarrierMember.create(groups, spin_seconds(groups))
        return [
            cls(rank, threads, members[rank], arena, turn, of_groups[turn.group])
            for rank, turn in enumerate(CoreTurn.create(ranks, groups))
        ]

    def close(self) -> None:
        """Close the parent's descriptors."""
        for part in (self.barrier, self.arena, self.turn, self.groups_barrier):
            part.close()


def arena_layout(config: ExperimentConfig, initial: SharedTensors, groups: int) -> Layout:
    """The tensors that so many groups share."""
    dtype = getattr(torch, config.dtype)
    # All of the state: a bound on the trainable parameters that needs no model here.
    line = ALIGNMENT_BYTES // dtype.itemsize
    elements = -(-sum(t.numel() for t in initial.values()) // line) * line
    return {
        "parameters": ((elements,), dtype),
        "gradients": ((groups, elements), dtype),
        "numbers": ((MOST_NUMBERS,), torch.int64),
        "squared_norms": ((groups,), dtype),
        "gathered": ((2, groups, GATHERED_AT_ONCE if config.batch.sync_batchnorm else 0), dtype),
    }


class SyncDataParallel(Strategy):
    """One process a worker; sums in a fixed order, so that a run can be repeated to the bit.

    Replicas are equal by construction, as long as each model keeps using the shared parameters.
    """

    wait_phase: ClassVar[int] = WAIT

    def __init__(
        self, config: ExperimentConfig, rank: int, model: nn.Module, initial: SharedTensors, shared: Shared
    ) -> None:
        super().__init__(config, rank, model, initial, shared)
        self._turn = shared.turn
        stay_on_a_core(self._turn.group if self._turn.is_shared else rank, shared.threads)
        self._barrier, self._groups_barrier = shared.barrier, shared.groups_barrier
        self._numbers = shared.arena["numbers"]
        self._squared_norms = shared.arena["squared_norms"]  # (groups,), of each group's chunks of the summed gradient
        self._gathered, self._gathers = shared.arena["gathered"], 0
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        elements = sum(parameter.numel() for parameter in parameters)
        flat, gradients = shared.arena["parameters"][:elements], shared.arena["gradients"][:, :elements]
        move(parameters, flat)
        self._reduction = ReduceScatter(parameters, flat, gradients, self._turn.group)
        self._chunks = [self._reduction.chunk]  # of the parameters, that this rank's group updates

    @classmethod
    def share(cls, config: ExperimentConfig, initial: SharedTensors) -> list[Shared]:
        """The shared memory and the barriers."""
        return Shared.create(config, initial, config.workers, config.busy_threads, group_count(config))

    @classmethod
    def shares_cores(cls, config: ExperimentConfig) -> bool:
        """Not where workers take turns."""
        return super().shares_cores(config) and group_count(config) == config.workers

    def start(self) -> None:
        """Each rank loads all of the initial state, the same values."""
        self.barrier()  # no rank still reads or updates
        self.replicas[0].model.load_state_dict(self._initial)
        self.optimizers = [optimizers.build(self._config.optimizer, self._chunks)]
        self.barrier()

    def begin_step(self) -> None:
        """Wait for this rank's turn on its core; then all parameters are updated."""
        if self._turn.is_shared:
            self.recorder.enter(WAIT)
            self._turn.wait()

    def update(self) -> None:
        """Publish the gradient; the last rank of a group sums a chunk of all gradients and updates it."""
        self.recorder.enter(COMMUNICATE)
        self._reduction.publish(adds=not self._turn.is_first)
        if self._turn.is_last:
            self._wait()  # all gradients are published
            self.recorder.enter(COMMUNICATE)
            self._reduction.sum_chunk()
            self._update_chunks([self._reduction.total])
        if self._turn.is_shared:
            self.recorder.enter(WAIT)  # who wakes the next one on this core may not go on before that sleeps
            self._turn.pass_on()

    def _update_chunks(self, gradients: list[torch.Tensor]) -> None:
        """Update this group's chunks of the parameters by their summed gradients."""
        optimizer, squared_norm = self.optimizers[0], None
        if optimizer.clip_norm is not None:
            self._squared_norms[self._turn.group] = optimizers.squared_norms(gradients)
            self._wait()  # all norms are written
            squared_norm = self._squared_norms.sum()
        self.recorder.enter(UPDATE)
        optimizer.step(gradients, squared_norm)
        self._wait()  # all parameters are updated, all gradients read

    def _wait(self) -> None:
        """For all groups."""
        self.recorder.enter(self.wait_phase)
        self._groups_barrier.wait()

    def barrier(self) -> None:
        """Return when every rank has called it."""
        super().barrier()
        self._barrier.wait()

    def broadcast(self, numbers: list[int]) -> list[int]:
        """Rank 0's numbers."""
        if self.replicas[0].rank == 0:
            self._numbers[: len(numbers)] = torch.tensor(numbers)
        self.barrier()
        received = [int(number) for number in self._numbers[: len(numbers)]]
        self.barrier()  # before it is written again
        return received

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """All ranks' values."""
        return torch.cat([self._gather_piece(piece) for piece in values.split(GATHERED_AT_ONCE)], 1)

    def _gather_piece(self, values: torch.Tensor) -> torch.Tensor:
        places = self._gathered[self._gathers % 2, :, : len(values)]
        self._gathers += 1  # there are two buffers: a rank that gathers again doesn't disturb one that still reads
        places[self.replicas[0].rank] = values
        self.recorder.enter(self.wait_phase)
        self._barrier.wait()
        self.recorder.enter(COMMUNICATE)
        return places.clone()
