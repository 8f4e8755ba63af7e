"""torch's DistributedDataParallel: the reference that others are measured against, and the way to more machines."""

from __future__ import annotations

import math
import os
import time
import warnings
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dpexp.config.experiment import ExperimentConfig
from dpexp.config.strategies import DdpConfig
from dpexp.errors import WorkerError
from dpexp.models import optimizers
from dpexp.processes.shared_memory import SharedTensors
from dpexp.results.phases import COMMUNICATE, COMPUTE, UPDATE
from dpexp.strategies.base import Replica, Strategy
from dpexp.strategies.rendezvous import Rendezvous, broadcast, gather


class Ddp(Strategy):
    """One process a worker, on one machine or, under torchrun, on several: gloo on CPUs, nccl on GPUs (untested).

    Each rank has its own parameters and optimizer; gradients are all-reduced while backward still runs.
    """

    unmeasured_phases = ("wait",)

    def __init__(
        self, config: ExperimentConfig, rank: int, model: nn.Module, initial: SharedTensors, shared: Rendezvous
    ) -> None:
        super().__init__(config, rank, model, initial, shared)
        assert isinstance(config.strategy, DdpConfig)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        shared.join("nccl" if self.device.type == "cuda" else "gloo", rank, config.workers)
        self._model = model
        model.load_state_dict(self._initial)
        with warnings.catch_warnings():  # the new name of `broadcast_buffers` isn't known to older versions of torch
            warnings.simplefilter("ignore", FutureWarning)
            self._wrapped = DistributedDataParallel(
                model, broadcast_buffers=False, find_unused_parameters=config.strategy.find_unused_parameters
            )
        self._wrapped.register_comm_hook(self, _sum)
        self.last_bucket_started = math.inf
        self.replicas = (Replica(rank, self._wrapped),)
        self._parameters = [p for p in model.parameters() if p.requires_grad]

    @classmethod
    def share(cls, config: ExperimentConfig, initial: SharedTensors) -> list[Rendezvous]:
        """The rendezvous of all ranks."""
        return [Rendezvous.here()] * config.workers

    @classmethod
    def choose_device(cls, config: ExperimentConfig, rank: int) -> torch.device:
        """The CPU, or a GPU for each worker of a machine."""
        if config.device == "cpu":
            return torch.device("cpu")
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", rank)))

    def start(self) -> None:
        """Each rank loads the same initial state."""
        self._model.load_state_dict(self._initial)
        self.optimizers = [optimizers.build(self._config.optimizer, self._parameters)]

    def accumulating(self) -> AbstractContextManager[Any]:
        """Without an all-reduce."""
        return self._wrapped.no_sync()

    def update(self) -> None:
        """One optimizer update, from gradients that backward has summed over all ranks."""
        self.recorder.enter(UPDATE)
        # Backward computes while buckets are all-reduced; what is left of that after it is communication, or waiting.
        self.recorder.move_since(self.last_bucket_started, COMPUTE, COMMUNICATE)
        self.last_bucket_started = math.inf
        self.optimizers[0].step(optimizers.take_gradients(self._parameters))

    def barrier(self) -> None:
        """Return when every rank has called it."""
        super().barrier()
        dist.barrier()

    def broadcast(self, numbers: list[int]) -> list[int]:
        """Rank 0's numbers."""
        return broadcast(numbers, self.device)

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """All ranks' values."""
        return gather(values, self._config.workers)

    @classmethod
    def explained(cls, error: RuntimeError) -> Exception:
        """As for all strategies, and for an unused parameter."""
        if "Expected to have finished reduction" in str(error):
            return WorkerError("the model left a parameter unused in a step; set strategy.find_unused_parameters=true")
        return super().explained(error)


def _sum(strategy, bucket):  # type: ignore[no-untyped-def]  # torch refuses annotations that are strings, as here all are
    """All-reduce one bucket. DDP's default hook would divide by the world size, which is wrong for uneven shards."""
    strategy.last_bucket_started = time.perf_counter()
    return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda done: done.value()[0])
