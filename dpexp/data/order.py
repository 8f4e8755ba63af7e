"""Which samples make up a step, and which of them are a worker's: pure functions."""

from __future__ import annotations

import torch


def epoch_order(samples: int, seed: int, epoch: int) -> torch.Tensor:
    """The order of samples in one epoch, int64 (samples,): a function of seed and epoch alone."""
    # Seeds are below 2**32: no two (seed, epoch) share a stream, nor one with the subset's (plain seed).
    generator = torch.Generator().manual_seed((epoch + 1) * 2**32 + seed)
    return torch.randperm(samples, generator=generator)


def shard(batch: torch.Tensor, rank: int, world_size: int) -> torch.Tensor:
    """The contiguous slice of a global batch that is this rank's: disjoint, complete, sizes within one.

    Lower ranks take the larger slices, so rank 0 has a sample whenever anyone has.
    """
    smaller, extra = divmod(len(batch), world_size)
    start = rank * smaller + min(rank, extra)
    return batch[start : start + smaller + (rank < extra)]
