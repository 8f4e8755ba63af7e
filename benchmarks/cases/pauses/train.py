"""A plain DDP loop with what trainings do beside steps: validate, keep checkpoints, start their loaders anew."""

import argparse
import os
import tempfile
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

EPOCH = 80  # steps


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--pause", choices=["none", "validation", "checkpoint", "loader"], default="none")
    parser.add_argument("--batch", type=int, default=64, help="of each process")
    parser.add_argument("--steps", type=int, default=100_000)
    options = parser.parse_args()
    distributed = "RANK" in os.environ
    if distributed:
        dist.init_process_group("gloo")
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if distributed else (0, 1)
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))
    model = DistributedDataParallel(plain) if distributed else plain
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    torch.manual_seed(rank)
    inputs, labels = torch.randn(EPOCH * options.batch, 784), torch.randint(10, (EPOCH * options.batch,))
    file = tempfile.TemporaryFile()
    started = time.perf_counter()
    step = 0
    while step < options.steps:
        if options.pause == "loader":
            loader = DataLoader(TensorDataset(inputs, labels), options.batch, shuffle=True, num_workers=1)
            batches = iter(loader)
        else:
            batches = ((inputs[at], labels[at]) for at in torch.randperm(len(inputs)).split(options.batch))
        for own_inputs, own_labels in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(own_inputs), own_labels).backward()
            optimizer.step()
            step += 1
            if step % EPOCH == 0 and rank == 0 and options.pause == "validation":
                with torch.no_grad():
                    for _ in range(40):
                        plain(inputs[:1000]).argmax(1).sum().item()
            if step % EPOCH == 0 and rank == 0 and options.pause == "checkpoint":
                file.seek(0)
                torch.save({"model": plain.state_dict(), "more": torch.zeros(1_000_000)}, file)
                os.fsync(file.fileno())
    if rank == 0:
        samples = step * options.batch * world_size
        print(f"{samples / (time.perf_counter() - started):.0f} samples a second", flush=True)
    if distributed:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
