"""Ranks that exchange gradients in shared memory, of which a random one is killed, ended or stopped: who tells what."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from benchmarks.setup import out, progress
from dpexp.exchange import comm_hook
from dpexp.processes import launch
from dpexp.processes.world import WorkerProcess, WorldSpec
from dpexp.train.strategies.rendezvous import Rendezvous
from testbed.endurance import Census

LAUNCHES, FAULTS = 500, (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP)
STOPPED_SECONDS = 2.0  # after which the others give up a rank that does not come
MAX_SECONDS = 0.1  # from the first exchange to the fault
HANG_SECONDS = 30.0


def run() -> None:
    """Print how often which fault was told how, the most seconds that it took, and what is left."""
    randomly, outcomes = random.Random(0), Counter[str]()  # noqa: S311 - no secret
    longest = dict.fromkeys(FAULTS, 0.0)
    launch.wait_for_server()
    before = Census.take()
    for number in range(LAUNCHES):
        ranks, fault = randomly.choice((2, 3, 4)), randomly.choice(FAULTS)
        lost = randomly.randrange(ranks)
        told, seconds = _lose(ranks, lost, fault, randomly.uniform(0, MAX_SECONDS))
        longest[fault] = max(longest[fault], seconds)
        all_told = all(re.search(r"rank \d has (ended|not come)", text) for text in told)
        named = any(re.search(rf"rank {lost} has (ended|not come)", text) for text in told)
        how = "told by all others, its rank named" if all_told and named else f"told otherwise: {told}"
        outcomes[f"{fault.name}: {how}"] += 1
        if number % 50 == 49:
            progress.print(f"{number + 1} launches")
    out.print(
        f"{LAUNCHES} launches of 2 to 4 ranks that exchange gradients in memory; a random one is killed or stopped"
    )
    for outcome, count in sorted(outcomes.items()):
        out.print(f"  {count} {outcome}")
    for fault, seconds in longest.items():
        out.print(f"  from {fault.name} until all others had told, at most {seconds:.2f} s")
    out.print(f"  before: {before}\n  after:  {Census.take()}")


def _lose(ranks: int, lost: int, fault: signal.Signals, seconds: float) -> tuple[list[str], float]:
    """What the other ranks tell, and how long after the fault the last one did."""
    places = [(ranks, place) for place in Rendezvous.on_this_host(ranks)]
    workers = [WorkerProcess(WorldSpec(_exchange_for_ever, places), 0, number) for number in range(ranks)]
    try:
        processes = [_received(worker, "notice") for worker in workers]
        time.sleep(seconds)
        os.kill(processes[lost], fault)
        began = time.monotonic()
        told = [str(_received(worker, "report")) for rank, worker in enumerate(workers) if rank != lost]
        return told, time.monotonic() - began
    finally:
        for worker in workers:
            worker.kill()
            worker.close()


def _received(worker: WorkerProcess, expected: str) -> Any:
    if not worker.pipe.poll(HANG_SECONDS):
        return "nothing"
    kind, value = worker.pipe.recv()
    return value if kind == expected else f"{kind}: {value}"


def _exchange_for_ever(rank: int, ranks: int, place: Rendezvous, notify: Callable[[Any], None]) -> str:
    """In each rank; returns the error that ends it."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    place.join(rank, ranks)
    model = DistributedDataParallel(torch.nn.Linear(100, 100))
    comm_hook.use_shared_memory(model, timeout_seconds=STOPPED_SECONDS)
    for _ in range(comm_hook.WARMUP_STEPS + 1):
        model(torch.ones(2, 100)).sum().backward()
    notify(os.getpid())
    try:
        while True:
            model(torch.ones(2, 100)).sum().backward()
    except RuntimeError as error:
        return str(error)
