"""What each process of a group does in the contract's tests; see test_strategies. Workers import this: it is light."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.distributed import TCPStore

from dpexp.train import loop, worker
from dpexp.train.data.sharding import shard
from dpexp.train.models import architectures
from dpexp.train.models.initial_state import initial_state
from dpexp.train.strategies import strategy_class
from dpexp.train.strategies.rendezvous import Rendezvous
from testbed.namespaces import HOSTS, enter


def run_checks(rank, config, dataset, initial, shared, notify):
    """In each process of a group: build the strategy as a worker does, then start over for each script of this file."""
    torch.set_num_threads(1)
    if isinstance(shared, OnHost):
        shared = shared.enter()
    model = architectures.build_model(config.model, dataset.input_shape, dataset.classes, getattr(torch, config.dtype))
    strategy = strategy_class(config)(config, rank, model, initial, shared)
    reports = {}
    for script in SCRIPTS:
        strategy.reset()
        strategy.barrier()
        reports[script.__name__] = script(config, dataset, strategy)
        strategy.barrier()  # whoever is late may still look; rank 0 may serve the store, so it must not end first
    return reports


@dataclass(frozen=True)
class OnHost:
    """The place of a process that torchrun would have started on a host of its own."""

    namespace: str
    serves_store: bool

    def enter(self):
        """What its rank receives, as from torchrun's launcher."""
        enter(self.namespace)
        address, port = next(iter(HOSTS.values())), 29512
        server = TCPStore(address, port, is_master=True, wait_for_workers=False) if self.serves_store else None
        return Rendezvous(address, port, "group", server)


def steps(config, dataset, strategy, count):
    inputs, labels = dataset.tensors["train_inputs"], dataset.tensors["train_labels"]
    for batch in torch.arange(len(inputs)).split(config.global_batch_size)[:count]:
        loop.step(config, strategy, inputs, labels, batch, inputs.new_zeros(()))
    strategy.barrier()


def ranks_played(config, dataset, strategy):
    return [replica.rank for replica in strategy.replicas]


def hashes_around_training(config, dataset, strategy):
    before = [worker.parameters_sha256(replica.model) for replica in strategy.replicas]
    steps(config, dataset, strategy, 3)
    after = [worker.parameters_sha256(replica.model) for replica in strategy.replicas]
    strategy.reset()
    return before, after, [worker.parameters_sha256(replica.model) for replica in strategy.replicas]


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

    alone = architectures.build_model(config.model, dataset.input_shape, dataset.classes).to(torch.float64)
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


def network(config, dataset, strategy):
    return Path("/proc/self/task", str(threading.get_native_id()), "ns/net").readlink().name


def received(config, dataset, strategy):
    rank = strategy.replicas[0].rank
    return [strategy.broadcast([first + rank, rank]) for first in (7, 8)]


SCRIPTS = [  # the first shows that the others can start over
    *(hashes_around_training, network, ranks_played, received),
    *(gradients_left, update_of_one_step, loss_of_one_step),
]
