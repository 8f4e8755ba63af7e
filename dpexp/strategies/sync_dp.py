"""Synchronous data parallelism between processes of one machine, through shared memory.

All ranks share one copy of the parameters. Each publishes its gradient in shared memory, all but its own chunk. Then
rank r adds up the r-th chunk of all gradients and updates that chunk of the parameters, with that chunk of the
optimizer's state: a reduce-scatter and a sharded update, as in ZeRO stage 1 (Rajbhandari et al. 2020), without an
all-gather.

With more workers of one thread than cores, the ranks of a core are a team. In each step they compute one after the
other, and all add to the same gradient; then the last of them does for its team what a rank does otherwise.
"""

from __future__ import annotations

import contextlib
import math
import os
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from dpexp.config.experiment import ExperimentConfig
from dpexp.machine.environment import usable_cores
from dpexp.models import optimizers
from dpexp.phases import COMMUNICATE, COMPUTE, UPDATE, WAIT
from dpexp.processes.barrier import BarrierMember
from dpexp.processes.shared_memory import ALIGNMENT_BYTES, Layout, SharedTensors
from dpexp.strategies import buckets, late_gradients
from dpexp.strategies.base import MOST_NUMBERS, Strategy
from dpexp.strategies.buckets import Bucket, Parts
from dpexp.strategies.relay import Relay

GATHERED_AT_ONCE = 4096  # numbers of a rank
SPIN_SECONDS = 200e-6  # some times what it costs to wake a sleeping process: a short delay puts nobody to sleep


@dataclass(frozen=True)
class Shared:
    """What one of the w ranks of a machine receives: its part of the barrier, and the memory that all share."""

    local_rank: int
    threads: int  # that compute on this machine, of all ranks together
    barrier: BarrierMember  # of all ranks
    arena: SharedTensors  # see arena_layout
    relay: Relay
    teams_barrier: BarrierMember  # of the last rank of each team
    bucket_bytes: float = math.inf  # of gradients that are exchanged together, at least

    @classmethod
    def create(
        cls,
        config: ExperimentConfig,
        initial: SharedTensors,
        ranks: int,
        threads: int,
        teams: int,
        bucket_bytes: float = math.inf,
    ) -> list[Shared]:
        """The parts of so many ranks with so many threads in so many teams, all on one machine."""
        arena = SharedTensors.allocate(arena_layout(config, initial, teams))
        members, relays = BarrierMember.create(ranks, spin_seconds(threads)), Relay.create(ranks, teams)
        team_members = members if teams == ranks else BarrierMember.create(teams, spin_seconds(teams))
        return [
            cls(rank, threads, member, arena, relay, team_members[relay.team], bucket_bytes)
            for rank, (member, relay) in enumerate(zip(members, relays, strict=True))
        ]

    def close(self) -> None:
        """Close the parent's descriptors."""
        for part in (self.barrier, self.arena, self.relay, self.teams_barrier):
            part.close()


def arena_layout(config: ExperimentConfig, initial: SharedTensors, teams: int) -> Layout:
    """The tensors that so many teams share."""
    dtype = getattr(torch, config.dtype)
    # All of the state: a bound on the trainable parameters that needs no model here.
    line = ALIGNMENT_BYTES // dtype.itemsize
    elements = -(-sum(t.numel() for t in initial.values()) // line) * line
    return {
        "parameters": ((elements,), dtype),
        "gradients": ((teams, elements), dtype),
        "numbers": ((MOST_NUMBERS,), torch.int64),
        "squared_norms": ((teams,), dtype),
        "gathered": ((2, teams, GATHERED_AT_ONCE if config.batch.sync_batchnorm else 0), dtype),
    }


class SyncDataParallel(Strategy):
    """One process a worker; sums in a fixed order, so that a run can be repeated to the bit.

    Replicas are equal by construction, as long as each model keeps using the shared parameters.
    """

    wait_phase: ClassVar[int] = WAIT
    takes_turns: ClassVar[bool] = True  # where there are more workers than cores

    def __init__(
        self, config: ExperimentConfig, rank: int, model: nn.Module, initial: SharedTensors, shared: Shared
    ) -> None:
        super().__init__(config, rank, model, initial, shared)
        stay_on_a_core(rank if shared.relay.batons is None else shared.relay.team, shared.threads)
        self._barrier, self._numbers = shared.barrier, shared.arena["numbers"]
        self._relay, self._teams_barrier = shared.relay, shared.teams_barrier
        self._squared_norms = shared.arena["squared_norms"]  # (teams,), of each team's chunks of the summed gradient
        self._gathered, self._gathers = shared.arena["gathered"], 0
        self.late = {} if config.model.name == "custom" else dict(late_gradients.postpone(model, self._computed))
        self._buckets = buckets.cut(
            [parameter for parameter in model.parameters() if parameter.requires_grad],
            shared.arena["parameters"],
            shared.arena["gradients"],
            self._relay.team,
            shared.bucket_bytes,
            self.late,
            self._relay.is_first,
            self._relay.is_last,
        )
        self._exchanged = 0  # buckets, in this step

    @classmethod
    def share(cls, config: ExperimentConfig, initial: SharedTensors) -> list[Shared]:
        """The shared memory and the barrier."""
        in_turn = config.busy_threads > usable_cores() and not cls.shares_cores(config)
        return Shared.create(
            config, initial, config.workers, config.busy_threads, usable_cores() if in_turn else config.workers
        )

    @classmethod
    def shares_cores(cls, config: ExperimentConfig) -> bool:
        """Not where workers take turns, which those of one thread do that don't meet within a step."""
        takes_turns = cls.takes_turns and config.threads_per_worker == 1 and not config.batch.sync_batchnorm
        return not takes_turns and super().shares_cores(config)

    def start(self) -> None:
        """Each rank loads all of the initial state, the same values."""
        self.barrier()  # no rank still reads or updates
        self.replicas[0].model.load_state_dict(self._initial)
        self.optimizers = [optimizers.build(self._config.optimizer, [bucket.chunk for bucket in self._buckets])]
        self.barrier()

    def begin_step(self) -> None:
        """Wait for this rank's turn on its core; then all parameters are updated."""
        if self._relay.batons is not None:
            self.recorder.enter(self.wait_phase)
            self._relay.receive()

    def update(self) -> None:
        """Publish the gradient; the last rank of a team sums a chunk of all teams' gradients and updates it."""
        for bucket in self._buckets[self._exchanged :]:
            self._exchange(bucket)
        self._exchanged = 0
        if self._relay.is_last:
            self._update_chunks()
        if self._relay.batons is not None:
            self.recorder.enter(self.wait_phase)  # who wakes the next one on this core may not go on before that sleeps
            self._relay.pass_on()

    def _computed(self, parameter: torch.Tensor) -> None:
        """Called in backward when a gradient is in its place: it is exchanged later."""

    def _exchange(self, bucket: Bucket) -> None:
        """Publish a bucket's gradients; the last rank of a team sums its chunk of them."""
        self._exchanged += 1
        self._write(bucket, bucket.published, adds=not self._relay.is_first)
        if self._relay.is_last:
            self.recorder.enter(self.wait_phase)
            self._teams_barrier.wait()  # all gradients are published
            self.recorder.enter(COMMUNICATE)
            bucket.sum.compute()
            self._write(bucket, bucket.kept, adds=not bucket.sum.is_empty)
        bucket.clear()

    def _write(self, bucket: Bucket, parts: Parts, adds: bool) -> None:
        if bucket.late:
            self.recorder.enter(COMPUTE)
            parts.multiply(adds)
        self.recorder.enter(COMMUNICATE)
        parts.write(adds)

    def _update_chunks(self) -> None:
        enter, totals = self.recorder.enter, [bucket.sum.total for bucket in self._buckets]
        optimizer, squared_norm = self.optimizers[0], None
        if optimizer.clip_norm is not None:
            self._squared_norms[self._relay.team] = optimizers.squared_norms(totals)
            enter(self.wait_phase)
            self._teams_barrier.wait()  # all norms are written
            squared_norm = self._squared_norms.sum()
        enter(UPDATE)
        optimizer.step(totals, squared_norm)
        enter(self.wait_phase)
        self._teams_barrier.wait()  # all parameters are updated, all gradients read

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


def spin_seconds(threads: int) -> float:
    """How long to spin before sleeping, where so many threads compute: not at all if another one needs the core."""
    return 0.0 if threads > usable_cores() else SPIN_SECONDS


def stay_on_a_core(rank: int, threads: int) -> None:
    """Where so many threads leave no core free, keep this process on one of them.

    A worker that sleeps at a barrier is often woken on the core of the one that wakes it, where they then take turns
    while another core is idle. Where a core is free, the scheduler uses that.
    """
    if not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    if threads >= len(cores) and torch.get_num_threads() == 1:
        with contextlib.suppress(OSError):  # a sandbox may forbid it
            os.sched_setaffinity(0, {cores[rank % len(cores)]})
