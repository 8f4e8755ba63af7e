"""The base class of strategies, which alone know about other workers; and the strategies that need one process."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from dpexp.config.built_in import BuiltInConfig
from dpexp.phases import COMMUNICATE, PHASES, UPDATE
from dpexp.processes.shared_memory import SharedTensors
from dpexp.train.models.optimizers import Optimizer, take_gradients
from dpexp.train.recorder import Recorder


@dataclass(frozen=True)
class Replica:
    """One worker's copy of the model."""

    rank: int
    model: nn.Module


class Strategy:
    """Turns the gradients of all replicas into one update of all replicas. The base class is for a single worker.

    The loss of every shard is summed and divided by the size of the whole global batch. So the sum of
    the gradients over replicas is the gradient of the mean loss, whatever the split, and a strategy
    only adds gradients. One object lives in each process.
    """

    measured_phases: ClassVar[tuple[str, ...]] = PHASES  # those that can be told apart
    optimizers: list[Optimizer]  # made by `reset`
    replicas: tuple[Replica, ...]  # those in this process: one, or all

    def __init__(self, config: BuiltInConfig, rank: int, model: nn.Module, initial: SharedTensors, shared: Any) -> None:
        """Called in the process of rank `rank`; `shared` is its part of what `share` returned."""
        self.replicas = (Replica(rank, model),)
        self.recorder = Recorder(is_on=False)  # records the time in each phase; `update` enters its phases
        self._config, self._models, self._initial = config, [model], initial
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._parameters_by_optimizer: Sequence[Sequence[torch.Tensor]] = [self._parameters]
        self._connect(shared)

    def _connect(self, shared: Any) -> None:
        """Reach the other processes, or make further replicas in this one. All processes call it together."""

    @classmethod
    def share(cls, config: BuiltInConfig, initial: SharedTensors) -> list[Any]:
        """In the parent, return a picklable object for each process, which uses it to connect to the others."""
        return [None] * config.process_count

    def reset(self) -> None:
        """Give every replica the initial state and a fresh optimizer. All processes call it together."""
        for model in self._models:
            model.load_state_dict(self._initial)
        optimizer, lr = self._config.optimizer, self._config.learning_rate
        self.optimizers = [Optimizer(optimizer, lr, parameters) for parameters in self._parameters_by_optimizer]

    def begin_step(self) -> None:
        """Return when this process may compute and the parameters are up to date. Called before a step's data."""

    def update(self) -> None:
        """Add up the replicas' gradients, make one optimizer update everywhere, clear the gradients.

        The parameters may be read after the next `begin_step` or `barrier`. Enters the recorder's phases wait,
        communicate and update.
        """
        self.recorder.begin_phase(UPDATE)
        self.optimizers[0].step(take_gradients(self._parameters))

    def barrier(self) -> None:
        """Return when every process of the world has called it."""

    def broadcast(self, numbers: list[int]) -> list[int]:
        """Return rank 0's numbers. All processes call it together."""
        return numbers


class Emulated(Strategy):
    """One process computes for all workers, one after the other, each with a replica and an optimizer.

    Its parameters are the reference for synchronous data parallelism; its time is the cost without parallelism.
    """

    def _connect(self, shared: Any) -> None:
        self._models += [copy.deepcopy(self._models[0]) for _ in range(self._config.workers - 1)]
        self.replicas = tuple(Replica(rank, model) for rank, model in enumerate(self._models))
        self._trainable = [[p for p in model.parameters() if p.requires_grad] for model in self._models]
        self._parameters_by_optimizer = self._trainable

    def update(self) -> None:
        """Sum the gradients in rank order; each replica's optimizer gets a copy."""
        self.recorder.begin_phase(COMMUNICATE)
        totals, *others = [take_gradients(parameters) for parameters in self._trainable]
        for gradients in others:
            for total, gradient in zip(totals, gradients, strict=True):
                total += gradient
        self.recorder.begin_phase(UPDATE)
        for optimizer in self.optimizers:
            optimizer.step([total.clone() for total in totals])
