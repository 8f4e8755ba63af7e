"""Train a classifier with DistributedDataParallel: torchrun --standalone --nproc-per-node=2 ddp_train.py"""

import argparse
import os

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch-size", type=int, default=64, help="of each process")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--loader-workers", type=int, default=1)
    parser.add_argument("--shared-memory", action="store_true", help="exchange gradients there")
    arguments = parser.parse_args()

    distributed = "RANK" in os.environ
    if distributed:
        dist.init_process_group("gloo")

    torch.manual_seed(0)
    dataset = TensorDataset(torch.randn(40_000, 784), torch.randint(10, (40_000,)))
    sampler = DistributedSampler(dataset) if distributed else None
    loader = DataLoader(
        dataset,
        batch_size=arguments.batch_size,
        sampler=sampler,
        shuffle=sampler is None,
        num_workers=arguments.loader_workers,
        drop_last=True,
    )

    model: nn.Module = nn.Sequential(nn.Linear(784, arguments.width), nn.ReLU(), nn.Linear(arguments.width, 10))
    if distributed:
        model = DistributedDataParallel(model)
        if arguments.shared_memory:
            from dpexp import exchange

            exchange.use_shared_memory(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    for epoch in range(arguments.epochs):
        if sampler is not None:
            sampler.set_epoch(epoch)
        for inputs, labels in loader:
            loss = F.cross_entropy(model(inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if not distributed or dist.get_rank() == 0:
            print(f"epoch {epoch}: loss {loss.item():.3f}", flush=True)

    if distributed:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
