"""The other ways to train the same model, each as a worker function of `dpexp.launch`: it returns its seconds.

All train the 784-256-10 MLP on the same images with SGD 0.01. `peer(rank, job, shared, notify)`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from dpexp.machine.environment import usable_cores
from dpexp.processes.shared_memory import SharedTensors
from dpexp.train.data.sharding import epoch_order, shard
from dpexp.train.strategies.rendezvous import Rendezvous

WARMUP_STEPS = 10


@dataclass(frozen=True)
class Job:
    """What all peers train: uint8 images (n, 28, 28), labels (n,), `batch` samples a worker."""

    images: SharedTensors
    workers: int
    epochs: int
    batch: int
    threads: int = 1


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
    return _plain_loop(rank, job, mlp(), lambda: None)


def ddp(rank: int, job: Job, shared: Rendezvous, notify: Callable[[Any], None]) -> float:
    """The same loop with torch's DistributedDataParallel over gloo."""
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    shared.join(rank, job.workers)
    return _plain_loop(rank, job, DistributedDataParallel(mlp()), distributed.barrier)


def _plain_loop(rank: int, job: Job, model: nn.Module, barrier: Callable[[], Any]) -> float:
    torch.set_num_threads(job.threads)
    torch.manual_seed(0)
    inputs = job.images["images"].flatten(1).float().div_(255)
    labels = job.images["labels"]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def step(batch: torch.Tensor) -> None:
        own = shard(batch, rank, job.workers)
        optimizer.zero_grad()
        F.cross_entropy(model(inputs[own]), labels[own]).backward()
        optimizer.step()

    global_batch = job.batch * job.workers
    for batch in epoch_order(len(labels), 0, 0).split(global_batch)[:WARMUP_STEPS]:
        step(batch)
    barrier()
    started = time.perf_counter()
    for epoch in range(job.epochs):
        for batch in epoch_order(len(labels), 0, epoch).split(global_batch):
            step(batch)
    barrier()
    return time.perf_counter() - started


def products_by_torch(rank: int, job: Job, shared: Any, notify: Callable[[Any], None]) -> float:
    """A limit: no training, just the five matrix products of each step, by torch.mm (MKL, where torch has it)."""
    return _products(job, lambda left, right: torch.mm(left, right.t()))


def products_by_onednn(rank: int, job: Job, shared: Any, notify: Callable[[Any], None]) -> float:
    """The same products by oneDNN."""
    return _products(job, lambda left, right: torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], ""))


def _products(job: Job, multiply: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> float:
    """Seconds of the products alone; `multiply(left, right)` is left times the transpose of right."""
    torch.set_num_threads(1)
    inputs, hidden, logits = torch.rand(job.batch, 784), torch.rand(job.batch, 256), torch.rand(job.batch, 10)
    first, second = torch.rand(256, 784), torch.rand(10, 256)

    def products() -> None:
        multiply(inputs, first)
        multiply(hidden, second)
        multiply(logits.t(), hidden.t())
        multiply(logits, second.t())
        multiply(hidden.t(), inputs.t())

    for _ in range(WARMUP_STEPS):
        products()
    started = time.perf_counter()
    for _ in range(job.epochs * -(-len(job.images["labels"]) // job.batch)):
        products()
    return time.perf_counter() - started


def missing(package: str, command: str | None = None) -> str | None:
    """Why a peer of the `bench` extra can't run here, None where it can."""
    if importlib.util.find_spec(package) is None:
        return f"{package} is not installed: pip install -e '.[bench]'"
    if command is not None and not Path(sys.executable).with_name(command).exists():
        return f"{command} is not installed beside Python: pip install -e '.[bench]'"
    return None


def lightning(workers: int, samples: int, epochs: int, batch: int) -> float:
    """Lightning's Trainer, ddp_spawn on the CPU; its own process, since it starts workers by itself."""
    return float(own_process([sys.executable, "-m", "benchmarks.lightning_peer"], workers, samples, epochs, batch))


def open_mpi(workers: int, sizes: list[int], repeats: list[int]) -> list[float]:
    """Seconds of one Allreduce of float32 for each size in elements, by Open MPI."""
    mpirun = [str(Path(sys.executable).with_name("mpirun")), "-n", str(workers), "--oversubscribe", sys.executable]
    seconds: list[float] = json.loads(
        own_process([*mpirun, "-m", "benchmarks.mpi_peer"], json.dumps(sizes), json.dumps(repeats))
    )
    return seconds


def own_process(command: list[str], *arguments: object) -> str:
    """The last line that a peer's own program prints."""
    as_root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    finished = subprocess.run(
        [*command, *map(str, arguments)],
        env={**os.environ, **as_root, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if finished.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{finished.stderr}")
    return finished.stdout.strip().splitlines()[-1]
