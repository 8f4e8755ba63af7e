"""The training loop, the same for any number of workers and any strategy."""

import functools
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from dpexp.config.built_in import BuiltInConfig
from dpexp.phases import COMPUTE, DATA
from dpexp.processes.heartbeat import WARMING_UP, heartbeat
from dpexp.train.data.dataset import Dataset
from dpexp.train.data.sharding import epoch_order, shard
from dpexp.train.strategies import Strategy
from dpexp.train.training_clock import TrainingClock


def train(config: BuiltInConfig, dataset: Dataset, strategy: Strategy, clock: TrainingClock) -> Iterator[float]:
    """Train on the first `train_samples` samples (in weak scaling, the baseline's are fewer), until `clock` ends it.

    Yields the sum of this process's losses at the end of each epoch, and of a partial epoch if `clock` ends the
    training within it.
    """
    inputs, labels = dataset.tensors["train_inputs"], dataset.tensors["train_labels"]
    for epoch in clock.epochs(config.epochs):
        loss_sum = torch.zeros((), dtype=getattr(torch, config.dtype))
        order = epoch_order(config.train_samples, config.seed, epoch)
        for batch in clock.batches(order.split(config.global_batch_size)):
            step(config, strategy, inputs, labels, batch, loss_sum)
            if not clock.end_step():
                yield loss_sum.item()
                return
        yield loss_sum.item()
    clock.pause()


def step(
    config: BuiltInConfig,
    strategy: Strategy,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    batch: torch.Tensor,
    loss_sum: torch.Tensor,
) -> None:
    """Make one optimizer update. `batch` has the global batch's indices; `loss_sum` grows by this process's losses."""
    strategy.begin_step()
    for replica in strategy.replicas:
        local, weight = shard(batch, replica.rank, config.workers), 1 / len(batch)
        if not len(local):  # the last batch has fewer samples than there are workers: take part with weight 0
            local, weight = batch[:1], 0.0
        strategy.recorder.begin_phase(DATA)
        local_inputs, local_labels = inputs.index_select(0, local), labels.index_select(0, local)
        strategy.recorder.begin_phase(COMPUTE)
        loss = F.cross_entropy(replica.model(local_inputs), local_labels, reduction="sum")
        loss.backward(_scalar(weight, loss.dtype))
        loss_sum += loss.detach() if weight else 0.0
    strategy.update()
    strategy.recorder.end_step()


@functools.cache
def _scalar(value: float, dtype: torch.dtype) -> torch.Tensor:
    """Return the gradient from which backward starts: with 1 / samples, it gives the gradient of the mean loss."""
    return torch.tensor(value, dtype=dtype)


def warm_up(config: BuiltInConfig, dataset: Dataset, strategy: Strategy) -> None:
    """Make untimed steps, at most an epoch's, so that libraries, caches and memory are warm.

    The strategy must be reset afterwards.
    """
    heartbeat.begin_stage(WARMING_UP)
    inputs, labels = dataset.tensors["train_inputs"], dataset.tensors["train_labels"]
    *batches, last = epoch_order(config.train_samples, config.seed, 0).split(config.global_batch_size)
    loss_sum = torch.zeros((), dtype=getattr(torch, config.dtype))
    # The last batch first: libraries take milliseconds to prepare for its size, too.
    for batch in [last, *batches][: config.measurement.warmup_steps]:
        step(config, strategy, inputs, labels, batch, loss_sum)
