"""The gradient noise scale: how large a batch may grow before its samples teach less each.

McCandlish, Kaplan, Amodei et al. 2018, "An Empirical Model of Large-Batch Training", appendix A. With the gradient of
the mean loss G and the covariance of a sample's gradient Sigma, a batch of B samples has E|G_B|^2 = |G|^2 + tr(Sigma) /
B. Data parallelism gives two batch sizes for free: each worker's, and all together. From their squared norms follow
unbiased estimates of |G|^2 and tr(Sigma), and the noise scale is tr(Sigma) / |G|^2, in samples.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch

from dpexp.clock.training_clock import Clock
from dpexp.config.experiment import ExperimentConfig
from dpexp.config.strategies import EmulatedConfig
from dpexp.data.dataset import Dataset
from dpexp.models import architectures
from dpexp.models.initial_state import initial_state
from dpexp.strategies import Emulated
from dpexp.training.loop import train


@dataclass(frozen=True)
class SquaredNorms:
    """Of the gradients in each step of whole batches, of the mean loss: shape (steps,)."""

    local: np.ndarray  # the mean over workers
    whole: np.ndarray
    local_batch: int
    workers: int

    def noise_scale(self, first: float = 0.0, last: float = 1.0) -> float:
        """In samples, over this part of the training; infinite where the gradient drowns in noise."""
        start = min(int(first * len(self.local)), len(self.local) - 1)
        part = slice(start, max(start + 1, int(last * len(self.local))))
        local, whole = float(self.local[part].mean()), float(self.whole[part].mean())
        small, large = self.local_batch, self.local_batch * self.workers
        squared_gradient = (large * whole - small * local) / (large - small)
        variance = (local - whole) / (1 / small - 1 / large)
        return max(variance, 0.0) / squared_gradient if squared_gradient > 0 else float("inf")


class _Observed(Emulated):
    """Keeps the squared norms of each step."""

    norms: list[tuple[float, float]]

    def update(self) -> None:
        """See Emulated."""
        gradients = [
            [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters] for parameters in self.trained
        ]
        local = sum(float(gradient.square().sum()) for one in gradients for gradient in one)
        whole = sum(float(sum(each).square().sum()) for each in zip(*gradients, strict=True))
        # A worker's gradient is weighted by its share of the batch.
        self.norms.append((local * len(gradients), whole))
        super().update()


def observe(config: ExperimentConfig, dataset: Dataset) -> SquaredNorms:
    """Train as `config` says, all workers in this process, and look at the gradients. Raises ConfigError."""
    config = dataclasses.replace(config, strategy=EmulatedConfig(name="emulated"), device="cpu")
    with initial_state(config, dataset) as initial:
        torch.manual_seed(config.seed)
        model = architectures.build(config.model, dataset.input_shape, dataset.classes)
        architectures.convert(model, getattr(torch, config.dtype))
        strategy = _Observed(config, 0, model, initial, None)
        strategy.norms = []
        strategy.start()
        list(train(config, dataset, strategy, Clock(strategy)))
    per_epoch = config.train_samples // config.global_batch_size
    whole_batches = [
        pair for number, pair in enumerate(strategy.norms) if number % config.updates_per_epoch < per_epoch
    ]
    norms = np.array(whole_batches)
    return SquaredNorms(norms[:, 0], norms[:, 1], config.local_batch_size, config.workers)


def statistical_efficiency(noise_scale: float, batch: float, baseline_batch: float) -> float:
    """How much a sample teaches in this batch, relative to the baseline's (Qiao et al. 2021, Pollux, equation 6)."""
    return (noise_scale + baseline_batch) / (noise_scale + batch)
