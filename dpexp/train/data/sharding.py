"""Which samples make up a step, and which of them are a worker's: pure functions."""

import numpy as np
import torch

_ORDER, _SUBSET = 1, 2  # tags that keep the two kinds of random streams apart


def epoch_order(samples: int, seed: int, epoch: int) -> torch.Tensor:
    """Return the order of samples in one epoch, int64 (samples,): a function of seed and epoch alone."""
    # numpy's streams, since torch's CPU generator looks at the low 32 bits of a seed only.
    return torch.from_numpy(np.random.default_rng([_ORDER, seed, epoch]).permutation(samples))


def subset(available: int, size: int, seed: int) -> torch.Tensor:
    """Return indices (size,) of a seeded random subset; a smaller one is the beginning of a larger one."""
    return torch.from_numpy(np.random.default_rng([_SUBSET, seed]).permutation(available)[:size])


def shard(batch: torch.Tensor, rank: int, world_size: int) -> torch.Tensor:
    """Return this rank's contiguous slice of a global batch. Slices cover it once, and differ in size by one at most.

    Lower ranks take the larger slices, so rank 0 has a sample whenever anyone has.
    """
    smaller, extra = divmod(len(batch), world_size)
    start = rank * smaller + min(rank, extra)
    return batch[start : start + smaller + (rank < extra)]
