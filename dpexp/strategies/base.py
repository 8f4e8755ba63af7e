"""The interface of a strategy, the only part of a training that knows that other workers exist."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from dpexp.clock.recorder import NoRecorder, Recorder
from dpexp.config.experiment import ExperimentConfig
from dpexp.machine.environment import usable_cores
from dpexp.models import sync_batchnorm
from dpexp.models.optimizers import Optimizer
from dpexp.processes.shared_memory import SharedTensors
from dpexp.results.phases import COMMUNICATE, COMPUTE
from dpexp.strategies.rendezvous import Rendezvous, explained

MOST_NUMBERS = 3  # in a broadcast


@dataclass(frozen=True)
class Replica:
    """One worker's copy of the model."""

    rank: int
    model: nn.Module


class Strategy(ABC):
    """How the gradients of all replicas become one update of all replicas.

    The loss of every shard is summed and divided by the size of the whole global batch. So the sum of
    the gradients over replicas is the gradient of the mean loss, whatever the split, and a strategy
    only ever adds. One object lives in each process.
    """

    unmeasured_phases: ClassVar[tuple[str, ...]] = ()  # that the recorder can't tell apart from others
    optimizers: list[Optimizer]  # made by `start`
    replicas: tuple[Replica, ...]  # those in this process: one, or all

    def __init__(
        self, config: ExperimentConfig, rank: int, model: nn.Module, initial: SharedTensors, shared: Any
    ) -> None:
        """In the process of rank `rank`; `shared` is its part of what `share` returned."""
        self.device = self.choose_device(config, rank)
        model.to(self.device)
        self.replicas = (Replica(rank, model),)
        self.recorder: Recorder = NoRecorder()  # of the time in each phase; `update` enters its phases
        self._config = config
        self._initial = initial
        if config.batch.sync_batchnorm and config.workers > 1:
            sync_batchnorm.synchronize(model, self._gather_while_computing)

    @classmethod
    def choose_device(cls, config: ExperimentConfig, rank: int) -> torch.device:
        """The device of rank `rank`."""
        return torch.device(config.device)

    @classmethod
    def share(cls, config: ExperimentConfig, initial: SharedTensors) -> list[Any]:
        """In the parent: what each process receives, beyond the initial state, to reach the others.

        Returns one picklable object for each process. The parent closes those that have a `close`
        when the training is over.
        """
        return [None] * config.processes

    @classmethod
    def shares_cores(cls, config: ExperimentConfig) -> bool:
        """Whether more threads compute at the same time than this machine has cores."""
        return config.busy_threads > usable_cores()

    @classmethod
    def under_torchrun(cls, rendezvous: Rendezvous, local_rank: int, local_size: int) -> Any:
        """What a rank receives where torchrun started it, as number `local_rank` of `local_size` on its host."""
        return rendezvous

    @abstractmethod
    def start(self) -> None:
        """Give every replica the initial state and a fresh optimizer. All processes call it together."""

    def begin_step(self) -> None:
        """Before a step's data: return when it is this process's turn and the parameters are up to date."""
        return  # at once, where processes don't take turns

    def accumulating(self) -> AbstractContextManager[Any]:
        """Within it, a backward pass leaves its gradients to be added to by the next one."""
        return contextlib.nullcontext()

    @abstractmethod
    def update(self) -> None:
        """Add up the replicas' gradients, make one optimizer update everywhere, clear the gradients.

        The parameters may be read after the next `begin_step` or `barrier`. Enters the recorder's phases wait,
        communicate and update.
        """

    def synchronize(self) -> None:
        """Return when this process's GPU, if any, has finished its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def barrier(self) -> None:
        """Return when every process of the world has called it, and its GPU has finished its work."""
        self.synchronize()

    def broadcast(self, numbers: list[int]) -> list[int]:
        """Rank 0's numbers, of which there are MOST_NUMBERS at most. All processes call it together."""
        return numbers

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """All ranks' values (w, n), in rank order; `values` are (n,). All processes call it together."""
        return values[None]

    def _gather_while_computing(self, values: torch.Tensor) -> torch.Tensor:
        self.recorder.enter(COMMUNICATE)
        gathered = self.gather(values)
        self.recorder.enter(COMPUTE)
        return gathered

    def set_learning_rate(self, lr: float) -> None:
        """The learning rate of the next update."""
        for optimizer in self.optimizers:
            optimizer.lr = lr

    @classmethod
    def explained(cls, error: RuntimeError) -> Exception:
        """The error to raise for one while training: another one where the cause lies with another rank."""
        return explained(error)
