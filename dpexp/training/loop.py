"""The training loop. It does not know how many workers there are; the strategy does."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from dpexp.config.experiment import ExperimentConfig
from dpexp.data.dataset import Dataset
from dpexp.data.order import epoch_order, shard
from dpexp.phases import COMPUTE, DATA
from dpexp.processes.heartbeat import FINISHING, TRAINING, WARMING_UP, heartbeat
from dpexp.strategies import Strategy


@dataclass(frozen=True)
class Trained:
    """Seconds from the barrier before the first step to the one after the last; the summed loss of each epoch."""

    seconds: float
    epoch_loss_sums: list[float]  # over the samples of the replicas in this process
    epoch_seconds: list[float]  # until the end of each epoch; only where `between_epochs` stopped the clock there


def train(
    config: ExperimentConfig,
    dataset: Dataset,
    strategy: Strategy,
    on_epoch: Callable[[int], None],
    between_epochs: Callable[[], None] | None = None,
) -> Trained:
    """Train for the configured epochs on the first `train_samples` of the data set (weak scaling's baseline: not all).

    `on_epoch` receives the number of finished epochs, clock running. `between_epochs` is called at the end of each
    with the clock stopped.
    """
    inputs, labels = (dataset.tensors[name].to(strategy.device) for name in ("train_inputs", "train_labels"))
    epoch_loss_sums, epoch_seconds, stopped = [], [], 0.0
    heartbeat.enter(TRAINING)
    strategy.barrier()
    started = time.perf_counter()
    strategy.recorder.start()
    for epoch in range(config.epochs):
        loss_sum = inputs.new_zeros(())
        order = epoch_order(config.train_samples, config.seed, epoch).to(strategy.device)
        for number, batch in enumerate(order.split(config.global_batch_size), epoch * config.updates_per_epoch):
            strategy.set_learning_rate(config.learning_rate(number))
            step(config, strategy, inputs, labels, batch, loss_sum)
        epoch_loss_sums.append(loss_sum.item())
        on_epoch(epoch + 1)
        if between_epochs is not None:
            strategy.barrier()
            paused = time.perf_counter()
            epoch_seconds.append(paused - started - stopped)
            between_epochs()
            strategy.barrier()
            stopped += time.perf_counter() - paused
            strategy.recorder.start()
    heartbeat.enter(FINISHING)
    strategy.barrier()
    return Trained(time.perf_counter() - started - stopped, epoch_loss_sums, epoch_seconds)


def step(
    config: ExperimentConfig,
    strategy: Strategy,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    batch: torch.Tensor,
    loss_sum: torch.Tensor,
) -> None:
    """One optimizer update from a global batch of indices; adds the losses of this process's samples to `loss_sum`."""
    for replica in strategy.replicas:
        local, weight = shard(batch, replica.rank, config.workers), 1 / len(batch)
        if not len(local):  # the last batch has fewer samples than there are workers: take part without weight
            local, weight = batch[:1], 0.0
        strategy.recorder.enter(DATA)
        local_inputs, local_labels = inputs.index_select(0, local), labels.index_select(0, local)
        strategy.recorder.enter(COMPUTE)
        loss = F.cross_entropy(replica.model(local_inputs), local_labels, reduction="sum")
        loss.backward(_scalar(weight, loss.dtype, loss.device))
        loss_sum += loss.detach() if weight else 0.0
    strategy.update()
    strategy.recorder.end_step()


@functools.cache
def _scalar(value: float, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The start of backward: from 1 / samples, gradients of summed losses add up to that of the mean loss."""
    return torch.tensor(value, dtype=dtype, device=device)


def warm_up(config: ExperimentConfig, dataset: Dataset, strategy: Strategy) -> None:
    """Make untimed steps, so that libraries, caches and memory are warm. The strategy must start again afterwards."""
    heartbeat.enter(WARMING_UP)
    inputs, labels = (dataset.tensors[name].to(strategy.device) for name in ("train_inputs", "train_labels"))
    batches = epoch_order(config.train_samples, config.seed, 0).to(strategy.device).split(config.global_batch_size)
    for number in range(config.measurement.warmup_steps):
        step(config, strategy, inputs, labels, batches[number % len(batches)], inputs.new_zeros(()))
