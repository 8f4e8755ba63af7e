"""A small training script, as tests start it: alone, by torchrun, or by its own spawn or fork; perhaps with a fault."""

import argparse
import os
import sys
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

parser = argparse.ArgumentParser()
parser.add_argument("--batch", type=int, default=8)
parser.add_argument("--steps", type=int, default=1_000_000)
parser.add_argument("--spawn", type=int, default=0)
parser.add_argument("--fork", type=int, default=0)
parser.add_argument("--port", default="")
parser.add_argument("--fault", default="")
options = parser.parse_args()


def train(rank: int, world_size: int) -> None:
    if options.fault == "threads":
        torch.set_num_threads(2)
    if world_size > 1:
        dist.init_process_group("gloo", rank=rank, world_size=world_size)
    model: nn.Module = nn.Linear(16, 4)
    if world_size > 1 and options.fault != "no ddp":
        model = DistributedDataParallel(model)
    if options.fault == "no hook" and world_size > 1 and not model._comm_hooks:
        sys.exit("no hook")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    steps = options.steps - (rank == 1 and options.fault == "uneven") * 5
    for step in range(steps):
        if step == 20 and options.fault == "raise" and rank == world_size - 1:
            raise ValueError("boom in step 20")
        if step == 20 and options.fault == "stop":
            sys.exit("the loss is NaN")
        if step == 20 and options.fault == "exit" and rank == world_size - 1:
            os._exit(3)
        while step == 20 and options.fault == "hang":
            time.sleep(1)
        model(torch.ones(options.batch, 16)).sum().backward()
        if step >= 20 and options.fault == "join" and rank == 1:
            continue
        optimizer.step()
        optimizer.zero_grad()


def spawned(rank: int, world_size: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": options.port}
    train(rank, world_size)


if __name__ == "__main__":
    if options.fault == "early":
        sys.exit("no data here")
    if options.fault == "no step":
        print("nothing to train")
        sys.exit()
    if options.spawn > 1:
        mp.spawn(spawned, (options.spawn,), nprocs=options.spawn)
    elif options.fork > 1:
        ranks = [os.fork() or sys.exit(spawned(rank, options.fork)) for rank in range(options.fork)]
        sys.exit(max(os.waitpid(rank, 0)[1] for rank in ranks) > 0)
    else:
        train(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))
