"""What a strategy is: the only thing that knows that other workers exist."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from dpexp.config import ExperimentConfig
from dpexp.optimizers import Optimizer
from dpexp.phases import NoRecorder, Recorder
from dpexp.shared_memory import SharedTensors


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

    name: ClassVar[str]
    untold_phases: ClassVar[tuple[str, ...]] = ()  # that the recorder can't tell from others
    optimizers: list[Optimizer]  # made by `start`
    replicas: tuple[Replica, ...]  # those that this process plays: its own, or all of them

    def __init__(
        self, config: ExperimentConfig, rank: int, model: nn.Module, initial: SharedTensors, shared: Any
    ) -> None:
        """In the process of rank `rank`; `shared` is its part of what `share` returned."""
        self.device = self.choose_device(config, rank)
        model.to(self.device)
        self.replicas = (Replica(rank, model),)
        self.recorder: Recorder = NoRecorder()  # of the time in each phase; `update` enters its own
        self._config = config
        self._initial = initial

    @classmethod
    def processes(cls, workers: int) -> int:
        """How many processes play `workers` workers: one, unless a strategy says otherwise."""
        return 1

    @classmethod
    def choose_device(cls, config: ExperimentConfig, rank: int) -> torch.device:
        """Where rank `rank` computes."""
        return torch.device(config.device)

    @classmethod
    def share(cls, config: ExperimentConfig, initial: SharedTensors) -> list[Any]:
        """In the parent: what each process is handed, beyond the initial state, to reach the others.

        Returns one picklable object for each process. What has a `close` is closed by the parent
        when the processes have started.
        """
        return [None] * cls.processes(config.workers)

    @abstractmethod
    def start(self) -> None:
        """Give every replica the initial state and a fresh optimizer. All processes call it together."""

    @abstractmethod
    def update(self) -> None:
        """Add up the replicas' gradients, make one optimizer update everywhere, clear the gradients.

        Enters the recorder's phases wait, communicate and update.
        """

    def barrier(self) -> None:
        """Return when every process of the group has called it, and its GPU has done what it was asked."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def set_learning_rate(self, lr: float) -> None:
        """The learning rate of the next update."""
        for optimizer in self.optimizers:
            optimizer.lr = lr

    def set_synchronized(self, synchronized: bool) -> None:  # noqa: B027 (one process waits for nobody)
        """Without, no process waits for another within a step: not a way to train, but to time what waiting costs."""

    @classmethod
    def explained(cls, error: RuntimeError) -> Exception:
        """What to raise for an error while training: another one where the cause lies with another rank."""
        return error
