"""The order of samples and its split: a function of seed and epoch, complete, disjoint."""

from __future__ import annotations

import pytest
import torch

from dpexp.train.data.sharding import epoch_order, shard


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("length", [0, 1, 2, 5, 64])
def test_shards_partition_a_batch(length, world_size):
    batch = torch.randperm(length)
    shards = [shard(batch, rank, world_size) for rank in range(world_size)]
    assert torch.equal(torch.cat(shards), batch)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_rank_0_has_a_sample_whenever_anyone_has():
    assert [len(shard(torch.arange(1), rank, 4)) for rank in range(4)] == [1, 0, 0, 0]


def test_an_epoch_visits_every_sample_once():
    assert torch.equal(epoch_order(1000, seed=3, epoch=1).sort().values, torch.arange(1000))


def test_order_repeats_for_the_same_seed_and_epoch():
    assert torch.equal(epoch_order(100, 3, 1), epoch_order(100, 3, 1))


@pytest.mark.parametrize(("seed", "epoch"), [(4, 1), (3, 2), (1, 3)])
def test_order_differs_for_another_seed_or_epoch(seed, epoch):
    assert not torch.equal(epoch_order(100, 3, 1), epoch_order(100, seed, epoch))
