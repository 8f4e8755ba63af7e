"""torch's DistributedDataParallel: the reference for other strategies, also on several machines."""

import math
import time
import warnings

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from dpexp.config.built_in import BuiltInConfig
from dpexp.config.groups import DdpConfig
from dpexp.exchange import SharedMemoryGroup
from dpexp.phases import COMMUNICATE, COMPUTE, UPDATE
from dpexp.processes.shared_memory import SharedTensors
from dpexp.train.models.optimizers import take_gradients
from dpexp.train.strategies.base import Replica, Strategy
from dpexp.train.strategies.rendezvous import Rendezvous


class Ddp(Strategy):
    """torch's DistributedDataParallel, over gloo, one process per worker.

    Each rank has its own parameters and optimizer; gradients are all-reduced while backward still runs.
    """

    measured_phases = ("data", "compute", "communicate", "update")  # waiting is part of communicate

    def _connect(self, shared: Rendezvous) -> None:
        config, rank, model = self._config, self.replicas[0].rank, self._models[0]
        assert isinstance(config.strategy, DdpConfig)
        shared.join(rank, config.workers)
        with warnings.catch_warnings():  # the new name of `broadcast_buffers` isn't known to older versions of torch
            warnings.simplefilter("ignore", FutureWarning)
            self._wrapped = DistributedDataParallel(
                model, broadcast_buffers=False, find_unused_parameters=config.strategy.find_unused_parameters
            )
        self.group: SharedMemoryGroup | None = None  # set if the ranks share memory
        if config.strategy.exchange == "shared_memory":
            self.group = SharedMemoryGroup(self._wrapped.process_group, average=False)
        self._wrapped.register_comm_hook(self, _sum_bucket)
        self.last_bucket_started = math.inf
        self.replicas = (Replica(rank, self._wrapped),)

    @classmethod
    def share(cls, config: BuiltInConfig, initial: SharedTensors) -> list[Rendezvous]:
        """Return the rendezvous of all ranks."""
        return Rendezvous.on_this_host(config.workers)

    def update(self) -> None:
        """Make one optimizer update, from gradients that backward has summed over all ranks."""
        self.recorder.begin_phase(UPDATE)
        # What remains of backward after the last bucket was sent counts as communication (it may be waiting, too).
        self.recorder.move_since(self.last_bucket_started, COMPUTE, COMMUNICATE)
        self.last_bucket_started = math.inf
        self.optimizers[0].step(take_gradients(self._parameters))

    def barrier(self) -> None:
        """Return when every rank has called it."""
        dist.barrier()

    def broadcast(self, numbers: list[int]) -> list[int]:
        """Return rank 0's numbers."""
        values = torch.tensor(numbers)
        dist.broadcast(values, src=0)
        received: list[int] = values.tolist()
        return received


def _sum_bucket(strategy: Ddp, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:  # type: ignore[name-defined]
    """All-reduce one bucket. DDP's default hook would divide by the world size, which is wrong for uneven shards."""
    started = time.perf_counter()
    if strategy.group is not None:
        strategy.recorder.begin_phase(COMMUNICATE)
        done = strategy.group.exchange(bucket)
        strategy.recorder.begin_phase(COMPUTE)
        if not strategy.group.uses_shared_memory:  # in shared memory, the exchange is complete
            strategy.last_bucket_started = started
        return done
    strategy.last_bucket_started = started
    return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda done: done.value()[0])
