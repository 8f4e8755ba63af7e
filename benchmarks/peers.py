"""The other ways, each as a worker function of `dpexp.launch`: it returns the seconds of its training.

All train the 784-256-10 MLP on the same images with SGD 0.01. `peer(rank, job, shared, notify)`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from dpexp.data.order import epoch_order, shard
from dpexp.environment import usable_cores
from dpexp.shared_memory import SharedTensors


@dataclass(frozen=True)
class Job:
    """What all peers train: uint8 images (n, 28, 28), labels (n,), batch samples a worker."""

    images: SharedTensors
    workers: int
    epochs: int
    batch: int
    port: int  # for gloo's rendezvous


def mlp() -> nn.Module:
    """The notebook's model."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))


class _Images(Dataset[tuple[torch.Tensor, int]]):
    """Samples one at a time through torchvision's ToTensor, as the notebook's data set gives them."""

    def __init__(self, images: SharedTensors) -> None:
        from torchvision.transforms import ToTensor

        self._images, self._labels, self._transform = images["images"], images["labels"], ToTensor()

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        from PIL import Image

        image = Image.fromarray(self._images[index].numpy())
        return self._transform(image), int(self._labels[index])


def notebook(rank: int, job: Job, shared: Any, notify: Callable[[Any], None]) -> float:
    """The class notebook's loop, flaws included: one process, w models that start different, a cold clock."""
    torch.set_num_threads(usable_cores())  # torch's default in a notebook
    data = _Images(job.images)
    per_worker = len(data) // job.workers
    loaders = [
        DataLoader(Subset(data, range(w * per_worker, (w + 1) * per_worker)), batch_size=job.batch, shuffle=True)
        for w in range(job.workers)
    ]
    replicas = [mlp() for _ in range(job.workers)]
    optimizers = [torch.optim.SGD(replica.parameters(), lr=0.01) for replica in replicas]
    started = time.perf_counter()
    for _ in range(job.epochs):
        for batches in zip(*loaders, strict=False):
            gradients = []
            for replica, optimizer, (inputs, labels) in zip(replicas, optimizers, batches, strict=True):
                optimizer.zero_grad()
                F.cross_entropy(replica(inputs), labels).backward()
                gradients.append([p.grad.clone() for p in replica.parameters() if p.grad is not None])
            means = [torch.stack(same).mean(0) for same in zip(*gradients, strict=True)]
            for replica in replicas:
                for parameter, mean in zip(replica.parameters(), means, strict=True):
                    parameter.grad = mean.clone()
            for optimizer in optimizers:
                optimizer.step()
    return time.perf_counter() - started


def hand_written(rank: int, job: Job, shared: Any, notify: Callable[[Any], None]) -> float:
    """What a careful person writes for one process: data in memory, one index operation a batch."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    inputs = job.images["images"].flatten(1).float().div_(255)
    labels = job.images["labels"]
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def step(batch: torch.Tensor) -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(inputs[batch]), labels[batch]).backward()
        optimizer.step()

    for batch in epoch_order(len(labels), 0, 0).split(job.batch)[:10]:
        step(batch)
    started = time.perf_counter()
    for epoch in range(job.epochs):
        for batch in epoch_order(len(labels), 0, epoch).split(job.batch):
            step(batch)
    return time.perf_counter() - started


def matrix_products(rank: int, job: Job, shared: Any, notify: Callable[[Any], None]) -> float:
    """The limit: no training, just the five matrix products of each of one worker's steps, by torch.mm."""
    torch.set_num_threads(1)
    inputs, hidden, logits = torch.rand(job.batch, 784), torch.rand(job.batch, 256), torch.rand(job.batch, 10)
    first, second = torch.rand(256, 784), torch.rand(10, 256)

    def products() -> None:
        torch.mm(inputs, first.t())
        torch.mm(hidden, second.t())
        torch.mm(logits.t(), hidden)
        torch.mm(logits, second)
        torch.mm(hidden.t(), inputs)

    for _ in range(10):
        products()
    started = time.perf_counter()
    for _ in range(job.epochs * -(-len(job.images["labels"]) // job.batch)):
        products()
    return time.perf_counter() - started


def ddp(rank: int, job: Job, shared: Any, notify: Callable[[Any], None]) -> float:
    """torch's DistributedDataParallel over gloo on this machine, data in memory, one thread a worker."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    torch.manual_seed(0)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(job.port), GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", rank=rank, world_size=job.workers)
    inputs = job.images["images"].flatten(1).float().div_(255)
    labels = job.images["labels"]
    model = DistributedDataParallel(mlp())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def step(batch: torch.Tensor) -> None:
        own = shard(batch, rank, job.workers)
        optimizer.zero_grad()
        F.cross_entropy(model(inputs[own]), labels[own]).backward()
        optimizer.step()

    global_batch = job.batch * job.workers
    for batch in epoch_order(len(labels), 0, 0).split(global_batch)[:10]:
        step(batch)
    dist.barrier()
    started = time.perf_counter()
    for epoch in range(job.epochs):
        for batch in epoch_order(len(labels), 0, epoch).split(global_batch):
            step(batch)
    dist.barrier()
    seconds = time.perf_counter() - started
    dist.destroy_process_group()
    return seconds
