"""The default training as a script of its own, which knows nothing of dpexp; perhaps with a delay in every step."""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import random
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
    parser.add_argument("--delay", choices=("none", "data", "forward", "backward", "update", "samples"), default="none")
    parser.add_argument("--rank", type=int, help="that is delayed; all, if not given")
    parser.add_argument("--seconds", type=float, default=0.003, help="of the delay")
    options = parser.parse_args()
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    where = options.delay if options.rank in (None, rank) else "none"
    torch.manual_seed(0)
    inputs, labels = torch.randn(SAMPLES, 784), torch.randint(10, (SAMPLES,))
    model: nn.Module = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))
    delay = functools.partial(time.sleep, options.seconds)
    if where == "backward":
        next(model.parameters()).register_hook(lambda gradient: delay())
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
        model = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    if where == "update":
        optimizer.register_step_pre_hook(lambda *arguments: delay())
    order = torch.randperm(SAMPLES)[rank::world_size].split(BATCH)
    for step in itertools.count():
        batch = order[step % (len(order) - 1)]
        if where == "data":
            delay()
        local_inputs, local_labels = inputs.index_select(0, batch), labels.index_select(0, batch)
        scores = model(local_inputs)
        if where == "forward":
            delay()
        elif where == "samples":  # whose work differs, as sentences of different lengths
            time.sleep(random.uniform(0, 2 * options.seconds))  # noqa: S311 - no secret
        F.cross_entropy(scores, local_labels).backward()
        optimizer.step()
        optimizer.zero_grad()


if __name__ == "__main__":
    main()
