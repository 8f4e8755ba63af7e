"""The default training as a script of its own, which knows nothing of dpexp; perhaps with a delay in every step."""

from __future__ import annotations

import argparse
import itertools
import os
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

SAMPLES, BATCH = 20_000, 64


def main() -> None:
    """Train until somebody ends it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--delay", choices=("none", "data", "forward", "rank"), default="none")
    parser.add_argument("--seconds", type=float, default=0.003, help="of the delay")
    options = parser.parse_args()
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    torch.manual_seed(0)
    inputs, labels = torch.randn(SAMPLES, 784), torch.randint(10, (SAMPLES,))
    model: nn.Module = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
        model = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    order = torch.randperm(SAMPLES)[rank::world_size].split(BATCH)
    for step in itertools.count():
        batch = order[step % (len(order) - 1)]
        if options.delay == "data":
            time.sleep(options.seconds)
        local_inputs, local_labels = inputs.index_select(0, batch), labels.index_select(0, batch)
        scores = model(local_inputs)
        if options.delay == "forward" or (options.delay == "rank" and rank == 1):
            time.sleep(options.seconds)
        F.cross_entropy(scores, local_labels).backward()
        optimizer.step()
        optimizer.zero_grad()


if __name__ == "__main__":
    main()
