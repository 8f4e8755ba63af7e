"""The contract that every strategy keeps, whatever it does inside."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny
from torch.distributed import TCPStore

from benchmarks import host_exchange
from benchmarks.hosts import HOSTS
from dpexp.data.dataset import load
from dpexp.data.sharding import shard
from dpexp.models import architectures
from dpexp.models.initial_state import initial_state
from dpexp.processes import launch
from dpexp.strategies import strategy_class
from dpexp.strategies.rendezvous import Rendezvous
from dpexp.training import evaluation, loop


@dataclass(frozen=True)
class Case:
    """Some workers of a strategy."""

    strategy: str  # and overrides
    workers: int
    namespaces: int = 0  # on so many hosts, which only the network joins; 0: all workers share this machine's

    def __str__(self) -> str:
        return f"{self.strategy}-{self.workers}" + (f"-on-{self.namespaces}-hosts" if self.namespaces else "")


IN_BUCKETS = "strategy.bucket_mb=0.0003"  # of the tiny model's 0.0011
CASES = [
    Case("sequential", 1),  # which one worker of any strategy is
    Case("sync_dp", 2),
    Case("sync_dp", 3),
    Case("emulated", 3),
    Case("ddp", 2),
    Case("ddp", 3),
    Case("ddp", 4, namespaces=2),
    Case("hybrid_dp", 3),
    Case("hybrid_dp strategy.hosts=2", 2),
    Case(f"hybrid_dp strategy.hosts=2 {IN_BUCKETS}", 4),
    Case("hybrid_dp", 2, namespaces=2),
    Case(f"hybrid_dp {IN_BUCKETS}", 4, namespaces=2),
]


@pytest.fixture(params=CASES, ids=str)
def case(request):
    return request.param


@pytest.fixture
def played(case, request):
    """A function: the reports of all processes, each of which runs a script of this file."""
    if case.namespaces:
        request.getfixturevalue("link")

    def reports(script: str) -> list[Any]:
        own = ["model=custom", "model.builder=user_models:with_batchnorm", "batch.sync_batchnorm=true"]
        strategy = [f"strategy={case.strategy.split()[0]}", *case.strategy.split()[1:]]
        config = tiny(*strategy, f"workers={case.workers}", *(own if script == "gathered" else []))
        dataset = load(config)
        initial = initial_state(config, dataset)
        shared = _over_the_link(config) if case.namespaces else strategy_class(config).share(config, initial)
        try:
            arguments = [(script, config, dataset, initial, own) for own in shared]
            return launch.launch(play, arguments, lambda notice: None)
        finally:
            for own in shared:
                if hasattr(own, "close"):
                    own.close()

    return reports


def play(rank, script, config, dataset, initial, shared, notify):
    """In each process of a group: build the strategy as a worker does, then run a script of this file."""
    torch.set_num_threads(1)
    if isinstance(shared, OnHost):
        shared = shared.enter(config)
    model = architectures.build(config.model, dataset.input_shape, dataset.classes).to(getattr(torch, config.dtype))
    strategy = strategy_class(config)(config, rank, model, initial, shared)
    strategy.start()
    return globals()[script](config, dataset, strategy)


@dataclass(frozen=True)
class OnHost:
    """The place of a process that torchrun would have started on a host of its own."""

    namespace: str
    local_rank: int
    local_size: int
    serves_store: bool

    def enter(self, config):
        """What its rank receives, as from torchrun's launcher."""
        host_exchange.enter(self.namespace)
        address, port = next(iter(HOSTS.values())), 29512
        server = TCPStore(address, port, is_master=True, wait_for_workers=False) if self.serves_store else None
        rendezvous = Rendezvous(address, port, "group", server)
        return strategy_class(config).under_torchrun(rendezvous, self.local_rank, self.local_size)


def _over_the_link(config):
    size = config.workers // len(HOSTS)
    return [OnHost(name, rank, size, (name, rank) == (next(iter(HOSTS)), 0)) for name in HOSTS for rank in range(size)]


def steps(config, dataset, strategy, count):
    inputs, labels = dataset.tensors["train_inputs"], dataset.tensors["train_labels"]
    for batch in torch.arange(len(inputs)).split(config.global_batch_size)[:count]:
        loop.step(config, strategy, inputs, labels, batch, inputs.new_zeros(()))
    strategy.barrier()


def ranks_played(config, dataset, strategy):
    return [replica.rank for replica in strategy.replicas]


def hashes_around_training(config, dataset, strategy):
    before = [evaluation.parameters_sha256(replica.model) for replica in strategy.replicas]
    steps(config, dataset, strategy, 3)
    after = [evaluation.parameters_sha256(replica.model) for replica in strategy.replicas]
    strategy.start()
    return before, after, [evaluation.parameters_sha256(replica.model) for replica in strategy.replicas]


def gradients_left(config, dataset, strategy):
    steps(config, dataset, strategy, 1)
    parameters = [p for replica in strategy.replicas for p in replica.model.parameters()]
    return [p.grad is None or not p.grad.any() for p in parameters]


def update_of_one_step(config, dataset, strategy):
    """The parameters' change by a step of plain SGD, divided by -lr: the gradient that was applied."""
    model = strategy.replicas[0].model
    before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    inputs, labels = dataset.tensors["train_inputs"], dataset.tensors["train_labels"]
    batch = torch.arange(5)
    loop.step(config, strategy, inputs, labels, batch, inputs.new_zeros(()))
    strategy.barrier()
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    applied = (before - after) / config.optimizer.lr

    alone = architectures.build(config.model, dataset.input_shape, dataset.classes).to(torch.float64)
    alone.load_state_dict(initial_state(config, dataset))
    F.cross_entropy(alone(inputs[batch]), labels[batch]).backward()
    expected = torch.cat([p.grad.flatten() for p in alone.parameters()])
    return (applied - expected).abs().max().item()


def loss_of_one_step(config, dataset, strategy):
    inputs, labels = dataset.tensors["train_inputs"], dataset.tensors["train_labels"]
    batch = torch.arange(5)
    own = torch.cat([shard(batch, replica.rank, config.workers) for replica in strategy.replicas])
    with torch.no_grad():
        expected = F.cross_entropy(strategy.replicas[0].model(inputs[own]), labels[own], reduction="sum").item()
    strategy.barrier()
    loss_sum = inputs.new_zeros(())
    loop.step(config, strategy, inputs, labels, batch, loss_sum)
    return loss_sum.item(), expected


def test_the_processes_together_play_every_rank_once(case, played):
    ranks = [rank for report in played("ranks_played") for rank in report]
    assert ranks == list(range(case.workers))


def test_each_host_has_a_network_of_its_own(case, played):
    """Else the cases on two hosts would show nothing."""
    assert len(set(played("network"))) == max(1, case.namespaces)


def test_replicas_are_equal_before_and_after_and_can_start_over(played):
    reports = played("hashes_around_training")
    before, after, again = ({sha for report in reports for sha in report[part]} for part in range(3))
    assert len(before) == len(after) == 1
    assert before == again != after


def test_no_gradient_is_carried_into_the_next_step(played):
    assert all(all(report) for report in played("gradients_left"))


def test_a_step_applies_the_mean_gradient_of_the_whole_uneven_batch(played):
    assert all(error < 1e-12 for error in played("update_of_one_step"))


def test_a_step_adds_up_the_losses_of_its_own_samples(played):
    for loss, expected in played("loss_of_one_step"):
        assert loss == pytest.approx(expected, rel=1e-12)


def test_a_broadcast_gives_all_ranks_the_numbers_of_rank_0(played):
    for numbers in played("received"):
        assert numbers == [[7, 0], [8, 0]]


def test_gathering_gives_all_ranks_the_values_of_each_in_order(case, played):
    if case.strategy != "emulated":  # which plays all ranks in one process, and is refused where ranks gather
        for first, second in played("gathered"):
            assert first == [[rank, 7] for rank in range(case.workers)]
            assert second == [[rank + 1] for rank in range(case.workers)]


def network(config, dataset, strategy):
    return Path("/proc/self/task", str(threading.get_native_id()), "ns/net").readlink().name


def gathered(config, dataset, strategy):
    rank = strategy.replicas[0].rank
    first = strategy.gather(torch.tensor([rank, 7.0], dtype=torch.float64)).tolist()
    return first, strategy.gather(torch.tensor([rank + 1.0], dtype=torch.float64)).tolist()


def received(config, dataset, strategy):
    rank = strategy.replicas[0].rank
    return [strategy.broadcast([first + rank, rank]) for first in (7, 8)]
