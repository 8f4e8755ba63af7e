"""The training loop. It never asks how many workers there are: the strategy knows."""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from dpexp.config import ExperimentConfig
from dpexp.data.dataset import Dataset
from dpexp.data.order import epoch_order, shard
from dpexp.position import COMPUTE, DATA, ENDING, EVALUATING, TRAINING, WARMING_UP, here
from dpexp.strategies import Strategy


@dataclass(frozen=True)
class Trained:
    """Seconds from the barrier before the first step to the one after the last; each epoch's summed loss."""

    seconds: float
    epoch_loss_sums: list[float]  # over the samples of the replicas that this process plays
    epoch_seconds: list[float]  # until the end of each epoch; only where `between_epochs` stopped the clock there


def train(
    config: ExperimentConfig,
    dataset: Dataset,
    strategy: Strategy,
    on_epoch: Callable[[int], None],
    between_epochs: Callable[[], None] | None = None,
) -> Trained:
    """Train for the configured epochs on the first `train_samples` of the data set (weak scaling's baseline: not all).

    `on_epoch` hears the number of finished epochs, clock running. `between_epochs` is called at the end of each with
    the clock stopped.
    """
    inputs, labels = (dataset.tensors[name].to(strategy.device) for name in ("train_inputs", "train_labels"))
    epoch_loss_sums, epoch_seconds, stopped = [], [], 0.0
    here.enter(TRAINING)
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
    here.enter(ENDING)
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
    """One optimizer update from a global batch of indices; adds its own samples' losses to `loss_sum`."""
    for replica in strategy.replicas:
        own, weight = shard(batch, replica.rank, config.workers), 1 / len(batch)
        if not len(own):  # the last batch has fewer samples than there are workers: take part without weight
            own, weight = batch[:1], 0.0
        strategy.recorder.enter(DATA)
        own_inputs, own_labels = inputs.index_select(0, own), labels.index_select(0, own)
        strategy.recorder.enter(COMPUTE)
        loss = F.cross_entropy(replica.model(own_inputs), own_labels, reduction="sum")
        loss.backward(_scalar(weight, loss.dtype, loss.device))
        loss_sum += loss.detach() if weight else 0.0
    strategy.update()
    strategy.recorder.end_step()


@functools.cache
def _scalar(value: float, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """What backward starts from: by 1 / samples, gradients of summed losses add up to that of the mean loss."""
    return torch.tensor(value, dtype=dtype, device=device)


def warm_up(config: ExperimentConfig, dataset: Dataset, strategy: Strategy) -> None:
    """Make untimed steps, so that libraries, caches and memory are warm. The strategy must start again after it."""
    here.enter(WARMING_UP)
    inputs, labels = (dataset.tensors[name].to(strategy.device) for name in ("train_inputs", "train_labels"))
    batches = epoch_order(config.train_samples, config.seed, 0).to(strategy.device).split(config.global_batch_size)
    for number in range(config.measurement.warmup_steps):
        step(config, strategy, inputs, labels, batches[number % len(batches)], inputs.new_zeros(()))


@torch.no_grad()
def evaluate(model: nn.Module, dataset: Dataset) -> tuple[float, float]:
    """Mean loss and accuracy (a fraction) on the whole test split."""
    model.eval()
    device = next(model.parameters()).device
    inputs, labels = (dataset.tensors[name].to(device) for name in ("test_inputs", "test_labels"))
    loss_sum, correct = 0.0, 0
    with here.within(EVALUATING):
        for batch_inputs, batch_labels in zip(inputs.split(1000), labels.split(1000), strict=True):
            logits = model(batch_inputs)
            loss_sum += F.cross_entropy(logits, batch_labels, reduction="sum").item()
            correct += int((logits.argmax(1) == batch_labels).sum())
            here.step()
    model.train()
    return loss_sum / len(labels), correct / len(labels)


def parameters_sha256(model: nn.Module) -> str:
    """A fingerprint of all parameters, to the bit."""
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()
