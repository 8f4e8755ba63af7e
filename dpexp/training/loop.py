"""The training loop. It does not know how many workers there are; the strategy does."""

from __future__ import annotations

import contextlib
import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from dpexp.config.experiment import ExperimentConfig
from dpexp.data.dataset import Dataset
from dpexp.data.mapped import MappedInputs
from dpexp.data.sharding import epoch_order, shard
from dpexp.phases import COMPUTE, DATA
from dpexp.processes.heartbeat import FINISHING, TRAINING, WARMING_UP, heartbeat
from dpexp.processes.recorder import Recorder
from dpexp.strategies import Strategy
from dpexp.training.turns import Turns


@dataclass(frozen=True)
class Trained:
    """The summed loss of each epoch, and, with `evaluate`, the seconds until its end."""

    epoch_loss_sums: list[float]  # over the samples of the replicas in this process
    epoch_seconds: list[float]


def train(
    config: ExperimentConfig,
    dataset: Dataset,
    strategy: Strategy,
    turns: Turns,
    recorder: Recorder,
    evaluate: Callable[[], None] | None = None,
) -> Trained:
    """Train for the configured epochs on the first `train_samples` of the data set (weak scaling's baseline: not all).

    `turns` has the clock. `evaluate` is called at the end of each epoch, with the clock stopped.
    """
    inputs, labels = dataset.train_inputs.to(strategy.device), dataset.tensors["train_labels"].to(strategy.device)
    epoch_loss_sums, epoch_seconds = [], []
    heartbeat.enter(TRAINING)
    turns.begin(config.updates, recorder)
    for epoch in range(config.epochs):
        loss_sum = torch.zeros((), dtype=getattr(torch, config.dtype), device=strategy.device)
        first = epoch * config.updates_per_epoch
        turns.before_step(first)
        order = epoch_order(config.train_samples, config.seed, epoch).to(strategy.device)
        for number, batch in enumerate(order.split(config.global_batch_size), first):
            turns.before_step(number)
            strategy.set_learning_rate(config.learning_rate(number))
            step(config, strategy, inputs, labels, batch, loss_sum)
        epoch_loss_sums.append(loss_sum.item())
        if evaluate is not None:
            epoch_seconds.append(turns.pause())
            evaluate()
            turns.resume()
    heartbeat.enter(FINISHING)
    turns.end()
    return Trained(epoch_loss_sums, epoch_seconds)


def step(
    config: ExperimentConfig,
    strategy: Strategy,
    inputs: torch.Tensor | MappedInputs,
    labels: torch.Tensor,
    batch: torch.Tensor,
    loss_sum: torch.Tensor,
) -> None:
    """One optimizer update from a global batch of indices; adds the losses of this process's samples to `loss_sum`."""
    strategy.begin_step()
    for replica in strategy.replicas:
        local, weight = shard(batch, replica.rank, config.workers), 1 / len(batch)
        if not len(local):  # the last batch has fewer samples than there are workers: take part without weight
            local, weight = batch[:1], 0.0
        count = min(config.batch.accumulation, len(local))
        parts = [local] if count == 1 else local.tensor_split(count)  # splitting takes microseconds of each step
        for number, part in enumerate(parts, 1):
            with contextlib.nullcontext() if number == len(parts) else strategy.accumulating():
                strategy.recorder.enter(DATA)
                local_inputs, local_labels = inputs.index_select(0, part), labels.index_select(0, part)
                strategy.recorder.enter(COMPUTE)
                loss = F.cross_entropy(replica.model(local_inputs), local_labels, reduction="sum")
                loss.backward(_scalar(weight, loss.dtype, loss.device))
                loss_sum += loss.detach() if weight else 0.0
    strategy.update()
    strategy.recorder.end_step(partial=len(batch) < config.global_batch_size)


@functools.cache
def _scalar(value: float, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The start of backward: from 1 / samples, gradients of summed losses add up to that of the mean loss."""
    return torch.tensor(value, dtype=dtype, device=device)


def warm_up(config: ExperimentConfig, dataset: Dataset, strategy: Strategy) -> float | None:
    """Make untimed steps, so that libraries, caches and memory are warm; return the seconds of one of the last.

    The strategy must start again afterwards.
    """
    heartbeat.enter(WARMING_UP)
    inputs, labels = dataset.train_inputs.to(strategy.device), dataset.tensors["train_labels"].to(strategy.device)
    batches = epoch_order(config.train_samples, config.seed, 0).to(strategy.device).split(config.global_batch_size)
    loss_sum = torch.zeros((), dtype=getattr(torch, config.dtype), device=strategy.device)
    seconds, steps = [], config.measurement.warmup_steps
    # The last batch comes first, unless that is all: libraries prepare themselves for its size, too, for milliseconds.
    for number in range(-1, steps - 1) if steps > 1 else range(steps):
        started = time.perf_counter()
        step(config, strategy, inputs, labels, batches[number % len(batches)], loss_sum)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[len(seconds) // 2 :]) if seconds else None
