"""Gaussian classes from a seed: data of any size and shape, made in memory."""

from __future__ import annotations

import math

import torch

from dpexp.config.groups import SyntheticDataConfig
from dpexp.data.split import Split
from dpexp.errors import DataError
from dpexp.machine.environment import available_memory_bytes


def synthetic_splits(config: SyntheticDataConfig, train_samples: int, seed: int) -> tuple[Split, Split]:
    """Gaussian classes with seeded means: training and test samples, float32, labels uniform at random."""
    samples = train_samples + config.test_size
    needed, available = 4 * samples * math.prod(config.shape), available_memory_bytes()
    if needed > available:
        raise DataError(
            f"data.size={config.size} samples of shape {config.shape} take {needed / 2**20:,.0f} MiB, and "
            f"{available / 2**20:,.0f} MiB of memory are available: choose fewer"
        )
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(config.classes, *config.shape, generator=generator)
    # Two random unit-variance means lie sqrt(2 d) apart in d dimensions: scale them to the separation.
    means *= config.separation / (2 * means[0].numel()) ** 0.5

    def split(samples: int) -> Split:
        labels = torch.randint(config.classes, (samples,), generator=generator)
        inputs = torch.randn(samples, *config.shape, generator=generator)
        return Split(inputs.add_(means[labels]), labels)

    try:
        test = split(config.test_size)
        return split(train_samples), test
    except RuntimeError as error:  # of torch's allocator
        raise DataError(
            f"data.size={config.size} samples of shape {config.shape} don't fit into memory: choose fewer"
        ) from error
