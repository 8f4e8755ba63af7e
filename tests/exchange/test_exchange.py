"""Gradients of DistributedDataParallel, exchanged in shared memory: the sums, and what happens when a rank ends."""

from __future__ import annotations

import copy
import gc
import math
import os
import signal
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dpexp.exchange import comm_hook, peers
from dpexp.processes import launch
from dpexp.processes.world import WorldSpec
from dpexp.train.strategies.rendezvous import Rendezvous

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SIZES = [1, 7, 33, 1000, 5]


def together(ranks, function, *arguments):
    """What `function(rank, size, *arguments)` returns in each process of a group."""
    places = [(function, ranks, place, arguments) for place in Rendezvous.on_this_host(ranks)]
    return launch.launch(WorldSpec(_member, places), 60)


def _member(rank, function, size, place, arguments, notify):
    torch.set_num_threads(1)
    store = place.join(rank, size)
    return function(rank, size, *(store if one == "store" else one for one in arguments))


def bucket_of(rank, size, dtype):
    return torch.randn(size, generator=torch.Generator().manual_seed(rank + 100 * size)).to(dtype)


def reduce(group, *buckets):
    """The buckets of a step, exchanged in memory."""
    group.uses_shared_memory, last = True, len(buckets) - 1
    found = [
        group.exchange(
            SimpleNamespace(
                index=lambda at=at: 1 + at, buffer=lambda at=at: buckets[at], is_last=lambda at=at: at == last
            )
        )
        for at in range(len(buckets))
    ]
    return [future.wait() for future in found]


def reduce_all(rank, ranks, average, hosts):
    """Of each dtype and size the reduced bucket as bytes, and how far it is from the sum in float64."""
    peers._host = lambda: f"host {rank % hosts}"
    group, found = comm_hook.SharedMemoryGroup(None, average), []
    for dtype in DTYPES:
        reduced_buckets = reduce(group, *(bucket_of(rank, size, dtype) for size in SIZES))
        for size, reduced in zip(SIZES, reduced_buckets, strict=True):
            exact = sum(bucket_of(one, size, dtype).double() for one in range(ranks)) / (ranks if average else 1)
            off = ((reduced.double() - exact).abs().max() / torch.finfo(dtype).eps).item()
            found.append((reduced.view(torch.uint8).tolist(), off))
    return found


@pytest.mark.parametrize(("ranks", "hosts"), [(2, 1), (3, 1), (4, 1), (4, 2)])
@pytest.mark.parametrize("average", [False, True], ids=["sum", "mean"])
def test_all_ranks_have_the_same_sums_to_the_bit(ranks, hosts, average):
    first, *others = together(ranks, reduce_all, average, hosts)
    assert all(off < 8 for _, off in first)
    assert all(other == first for other in others)


class Branches(nn.Module):
    """A model with a layer that a batch may leave out."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.rare = nn.Linear(6, 50), nn.Linear(50, 3), nn.Linear(50, 50)

    def forward(self, inputs, rarely):
        hidden = self.first(inputs)
        return self.second(self.rare(hidden) if rarely else hidden)


def train(rank, ranks, in_memory, hosts=1):
    """Steps with small buckets, accumulation, and a layer that is not always used; the parameters."""
    peers._host = lambda: f"host {rank % hosts}"
    torch.manual_seed(0)
    own = {"find_unused_parameters": True, "bucket_cap_mb": 0.001, "gradient_as_bucket_view": ranks == 3}
    model = DistributedDataParallel(Branches().double(), **own)
    if in_memory:
        comm_hook.use_shared_memory(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(rank)
    for step in range(30):
        batch = torch.randn(4, 6, generator=generator, dtype=torch.float64)
        with model.no_sync():
            model(batch, step % 3 == 0).square().mean().backward()
        model(batch.flip(0), step % 3 == 0).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).numpy()


def uses_shared_memory(rank, ranks):
    """Whether two ranks of two hosts exchange a step in memory, though only that is asked for."""
    peers._host = lambda: f"host {rank}"
    model = DistributedDataParallel(nn.Linear(3, 5))
    group = comm_hook.use_shared_memory(model)
    for _ in range(comm_hook.WARMUP_STEPS + 2):
        model(torch.ones(1, 3)).sum().backward()
    return group.uses_shared_memory


def test_the_process_group_continues_where_each_host_has_one_rank():
    assert together(2, uses_shared_memory) == [False, False]


@pytest.mark.parametrize(("ranks", "hosts"), [(2, 1), (3, 1), (4, 2), (2, 2)])
def test_a_model_learns_the_same_as_over_gloo(ranks, hosts):
    over_gloo, in_memory = (together(ranks, train, way, hosts) for way in (False, True))
    np.testing.assert_allclose(in_memory[0], over_gloo[0], rtol=1e-12, atol=1e-12)
    assert all((one == in_memory[0]).all() for one in in_memory)


def train_two(rank, ranks):
    """Two models, whose backward passes alternate; whether all ranks have the same gradients, and not their own."""
    models = [DistributedDataParallel(nn.Linear(3, size)) for size in (2, 5)]
    for model in models:
        comm_hook.use_shared_memory(model)
    for _ in range(comm_hook.WARMUP_STEPS + 2):
        for model in models:
            model.zero_grad()
            model(torch.full((1, 3), rank + 1.0)).sum().backward()
    return [model.module.weight.grad.unique().tolist() for model in models]


def test_each_of_several_models_has_its_own_exchange():
    assert together(2, train_two) == [[[1.5], [1.5]]] * 2


def lose(rank, ranks, store, waits, seconds):
    """Rank 1 makes three steps only: it ends, or waits until another has noticed. What the others raise."""
    model = DistributedDataParallel(nn.Linear(4, 4))
    group = comm_hook.use_shared_memory(model)
    try:
        while True:
            for _ in range(comm_hook.WARMUP_STEPS + 3):
                model(torch.ones(2, 4)).sum().backward()
            group.peers.timeout_seconds = seconds
            if rank == 1:
                return store.get("noticed").decode() if waits else "ended"
    except RuntimeError as error:
        store.set("noticed", str(rank))
        return str(error)


def test_a_rank_that_has_ended_is_named_by_the_others():
    first, ended, third = together(3, lose, "store", False, 60)
    assert ended == "ended"
    assert any("rank 1 exited while" in told for told in (first, third))
    assert all("exited while" in told for told in (first, third))


def test_a_rank_that_does_not_come_is_named_by_who_notices_first():
    first, _, third = together(3, lose, "store", True, 4)
    assert "rank 1 has not joined the exchange of gradients for 4 s" in (first, third)


def go_on_without(rank, ranks):
    """Rank 1 has left its last exchange, and another rank notices that before its next one."""
    group = comm_hook.SharedMemoryGroup(None)
    group.peers._exited_ranks.append(1)
    with pytest.raises(RuntimeError, match="rank 1 exited while"):
        reduce(group, torch.ones(3))
    return True


def test_a_rank_that_is_known_to_have_ended_is_not_waited_for():
    assert together(2, go_on_without) == [True, True]


def forked(rank, ranks, store):
    """Rank 1 ends, and leaves a forked process, as a data loader may."""
    group = comm_hook.SharedMemoryGroup(None)
    reduce(group, torch.ones(3))
    if rank == 1:
        if child := os.fork():
            store.set("child", str(child))
            return "ended"
        store = None
        signal.pause()
    try:
        while True:
            reduce(group, torch.ones(3))
    except RuntimeError as error:
        os.kill(int(store.get("child")), signal.SIGKILL)
        return str(error)


def test_the_end_of_a_rank_is_noticed_despite_its_living_child():
    first, _ = together(2, forked, "store")
    assert "rank 1 exited while" in first


def copy_model(rank, ranks):
    model = DistributedDataParallel(nn.Linear(4, 4))
    comm_hook.use_shared_memory(model)
    return copy.deepcopy(model).module.weight.equal(model.module.weight)


def test_a_model_can_still_be_copied():
    assert together(2, copy_model) == [True, True]


def refuse(rank, ranks):
    peers._host = lambda: f"host {rank // 2}"
    try:
        comm_hook.SharedMemoryGroup(None)
    except ValueError as error:
        return str(error)


def test_hosts_with_different_numbers_of_ranks_are_refused():
    told = "2 hosts with 2 ranks, 1 rank: shared memory needs the same number on each"
    assert together(3, refuse) == [told] * 3


def corrupt(rank, ranks, more, inputs):
    """The first exchange in memory, in which ranks sum something else."""
    model = DistributedDataParallel(nn.Linear(4, 4))
    group = comm_hook.use_shared_memory(model)
    correct = group.peers.barrier
    group.peers.barrier = lambda: (correct(), group._buffers and group._buffers[0].peer_chunks[0].add_(more))
    try:
        for _ in range(comm_hook.WARMUP_STEPS + 1):
            model(torch.full((2, 4), inputs)).sum().backward()
    except RuntimeError as error:
        return str(error)


@pytest.mark.parametrize(("more", "inputs"), [(1.0, 1.0), (math.nan, 1.0), (1.0, math.inf)])
def test_wrong_sums_are_noticed_in_the_first_exchange(more, inputs):
    """Those that are no number, too, and finite ones (of the bias) beside infinite ones."""
    told = "sums of gradients in shared memory differ from those of the process group"
    assert together(2, corrupt, more, inputs) == [told] * 2


def test_sums_that_are_infinite_both_ways_are_no_error():
    assert together(2, corrupt, 0.0, math.inf) == [None, None]


def open_descriptors(rank, ranks):
    """Before a model, and when it is gone."""
    before = psutil.Process().num_fds()
    train(rank, ranks, True)
    gc.collect()
    return psutil.Process().num_fds() - before


def test_nothing_is_left_of_a_model_that_is_gone():
    open_descriptors_left = together(2, open_descriptors)
    assert open_descriptors_left == [0, 0]
