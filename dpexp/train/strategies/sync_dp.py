"""Synchronous data parallelism between processes of one machine, through shared memory.

All ranks share one copy of the parameters. In each step, a rank publishes its gradient in shared memory. When all are
done, rank r adds up the r-th chunk of all gradients and updates that chunk of the parameters, with that chunk of the
optimizer's state. When all are done, the next step begins. That is a reduce-scatter and a sharded update, as in ZeRO
stage 1 (Rajbhandari et al. 2020), without an all-gather.

With more workers than cores, the ranks of a core add up their gradients one after another, and the last of them does
the rest, as one rank; see core_sharing.
"""

from dataclasses import dataclass

import torch
from torch.nn.utils import vector_to_parameters

from dpexp.config.built_in import BuiltInConfig
from dpexp.phases import COMMUNICATE, UPDATE, WAIT
from dpexp.processes.barrier import BarrierMember, spin_seconds
from dpexp.processes.shared_memory import ALIGNMENT_BYTES, Layout, SharedTensors
from dpexp.train.strategies.base import Strategy
from dpexp.train.strategies.core_sharing import CoreShare, group_count, pin_to_core
from dpexp.train.strategies.reduce_scatter import ReduceScatter

MAX_BROADCAST = 8  # numbers at once


@dataclass(frozen=True)
class Shared:
    """What one rank receives: its part of the barriers, and the shared memory."""

    row: int  # this rank's row of gradients; ranks that share a core share a row
    memory: SharedTensors  # parameters, gradients, and broadcast numbers
    barrier: BarrierMember  # between all ranks
    update_barrier: BarrierMember  # between the ranks that update parameters: one of each row
    core_share: CoreShare | None = None  # set if ranks share cores


class SyncDataParallel(Strategy):
    """One process per worker; sums have a fixed order, so a run can be repeated to the bit.

    Replicas are equal by construction, as long as each model keeps using the shared parameters.
    """

    def _connect(self, shared: Shared) -> None:
        pin_to_core(shared.row, self._config.total_threads)
        self._barrier, self._update_barrier, self._core_share = shared.barrier, shared.update_barrier, shared.core_share
        self._broadcast = shared.memory["broadcast"]
        elements = sum(parameter.numel() for parameter in self._parameters)
        flat, gradients = shared.memory["parameters"][:elements], shared.memory["gradients"][:, :elements]
        vector_to_parameters(flat, self._parameters)
        adds = shared.core_share is not None and not shared.core_share.is_first
        self._reduction = ReduceScatter(self._parameters, flat, gradients, shared.row, adds)
        self._parameters_by_optimizer = [[self._reduction.chunk]]

    @classmethod
    def share(cls, config: BuiltInConfig, initial: SharedTensors) -> list[Shared]:
        """Allocate the shared memory and the barriers."""
        dtype, groups = getattr(torch, config.dtype), group_count(config)
        # All of the state: a bound on the trainable parameters that needs no model here.
        line = ALIGNMENT_BYTES // dtype.itemsize
        elements = -(-sum(tensor.numel() for tensor in initial.values()) // line) * line
        layout: Layout = {
            "parameters": ((elements,), dtype),
            "gradients": ((groups, elements), dtype),
            "broadcast": ((MAX_BROADCAST,), torch.int64),
        }
        memory = SharedTensors.allocate(layout)
        members = BarrierMember.create(config.workers, spin_seconds(config.total_threads))
        if groups == config.workers:
            return [Shared(rank, memory, member, member) for rank, member in enumerate(members)]
        updating = BarrierMember.create(groups, spin_seconds(groups))
        shares = CoreShare.create(config.workers, groups)
        return [
            Shared(share.group, memory, member, updating[share.group], share)
            for member, share in zip(members, shares, strict=True)
        ]

    def reset(self) -> None:
        """Load all of the initial state on each rank."""
        self.barrier()  # no rank still reads or updates
        super().reset()
        self.barrier()

    def begin_step(self) -> None:
        """Wait until this rank may compute on its core; then all parameters are up to date."""
        if self._core_share is not None:
            self.recorder.begin_phase(WAIT)
            self._core_share.wait()

    def update(self) -> None:
        """Publish this rank's gradient, then sum one chunk of all gradients, and update those parameters.

        If ranks share a core, only the last one sums and updates.
        """
        self.recorder.begin_phase(COMMUNICATE)
        self._reduction.publish()
        if self._core_share is None or self._core_share.is_last:
            self._wait()  # all gradients are published
            self.recorder.begin_phase(COMMUNICATE)
            self._reduction.sum_chunk()
            self.recorder.begin_phase(UPDATE)
            self.optimizers[0].step([self._reduction.total])
            self._wait()  # all parameters are updated, all gradients read
        if self._core_share is not None:
            self.recorder.begin_phase(WAIT)  # the rank that is woken may keep this core until it sleeps
            self._core_share.pass_on()

    def _wait(self) -> None:
        """Wait for the ranks that update the other chunks."""
        self.recorder.begin_phase(WAIT)
        self._update_barrier.wait()

    def barrier(self) -> None:
        """Return when every rank has called it."""
        self._barrier.wait()

    def broadcast(self, numbers: list[int]) -> list[int]:
        """Return rank 0's numbers, at most MAX_BROADCAST."""
        if self.replicas[0].rank == 0:
            self._broadcast[: len(numbers)] = torch.tensor(numbers)
        self.barrier()
        received: list[int] = self._broadcast[: len(numbers)].tolist()
        self.barrier()  # before rank 0 writes again, all have read
        return received
