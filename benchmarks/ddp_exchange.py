"""Stock DistributedDataParallel over gloo and with gradients in shared memory, and one process, in turns."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.distributed as dist
from rich.table import Table

from benchmarks.setup import out, progress, shown
from dpexp.analysis.estimate import geometric_mean
from dpexp.analysis.ratio_estimate import compare
from dpexp.config.compose import compose_config
from dpexp.entry_point import hold_measurement_lock
from dpexp.exchange import SharedMemoryGroup
from dpexp.measurement.job import measure_in_turns
from dpexp.processes import launch
from dpexp.processes.world import WorldSpec
from dpexp.train.strategies.rendezvous import Rendezvous

IMAGES = "data=synthetic data.shape=[3,32,32] data.size=2000"
CASES = {
    "MLP of 0.2 M parameters, 2 workers": "data.size=20000 workers=2",
    "the same, 4 workers": "data.size=20000 workers=4",
    "MLP of 2.9 M parameters, 2 workers": "data.size=20000 model.hidden=[1536,1024] workers=2",
    "cnn, 2 workers": "data.size=10000 model=cnn workers=2",
    "resnet18, 2 workers": f"{IMAGES} model=resnet18 batch.size=16 workers=2",
}
SIZES_BYTES = [2**power for power in range(10, 29, 3)]  # 1 KiB to 256 MiB
RANKS = (2, 4, 8)
TURNS, TIMEOUT_SECONDS = 6, 600.0
GLOO, MEMORY, ALONE, OURS = "gloo", "shared memory", "one process", "sync_dp"


def run(rounds: int) -> None:
    """Print how many times the samples a second of the others stock DDP has with gradients in shared memory."""
    table = Table(box=None)
    for head in ("throughput with shared memory over that of ...", GLOO, ALONE, OURS):
        table.add_column(head, justify="left" if "over" in head else "right")
    for name, case in CASES.items():
        progress.print(name)
        words = [*case.split(), f"measurement.max_seconds={15 * rounds}", "measurement.precision=0.005"]
        arms = {
            GLOO: compose_config(*words, "strategy=ddp"),
            ALONE: compose_config(*words, "strategy=ddp").baseline(),
            OURS: compose_config(*words, "strategy=sync_dp"),
            MEMORY: compose_config(*words, "strategy=ddp", "strategy.exchange=shared_memory"),
        }
        with tempfile.TemporaryDirectory() as folder, hold_measurement_lock():
            blocks = measure_in_turns(arms, baseline=GLOO, candidate=MEMORY, folder=Path(folder))
        table.add_row(
            name, *(shown(compare([blocks], baseline=other, candidate=MEMORY).overall) for other in (GLOO, ALONE, OURS))
        )
    out.print(table)
    out.print()
    _sizes(rounds)


def _sizes(rounds: int) -> None:
    """All-reduces alone."""
    table = Table(box=None)
    for head in ("time of an all-reduce over gloo / in memory", *(f"{ranks} ranks" for ranks in RANKS)):
        table.add_column(head, justify="left" if "time" in head else "right")
    found = {}
    for ranks in RANKS:
        progress.print(f"{ranks} ranks")
        runs = [_ratios(ranks) for _ in range(rounds)]
        found[ranks] = [[run[at] for run in runs] for at in range(len(SIZES_BYTES))]
    for at, size in enumerate(SIZES_BYTES):
        ratios = (shown(geometric_mean(found[ranks][at])) for ranks in RANKS)
        table.add_row(f"{size // 2**20} MiB" if size >= 2**20 else f"{size // 2**10} KiB", *ratios)
    out.print(table)


def _ratios(ranks: int) -> list[float]:
    """Seconds over gloo over those in memory, by size: of the slowest rank, in fresh processes."""
    arguments = [(ranks, place) for place in Rendezvous.on_this_host(ranks)]
    reports = np.array(launch.launch(WorldSpec(_all_reduces, arguments), TIMEOUT_SECONDS))  # (ranks, sizes, ways)
    over_group, in_memory = reports.max(0).T
    return (over_group / in_memory).tolist()  # type: ignore[no-any-return]


def _all_reduces(rank: int, ranks: int, place: Rendezvous, notify: object) -> list[list[float]]:
    """In each process: seconds of an all-reduce of each size over gloo, and in memory, in turns."""
    torch.set_num_threads(1)
    place.join(rank, ranks)
    group, found = SharedMemoryGroup(None, average=False), []
    for size in SIZES_BYTES:
        buffer, seconds = torch.zeros(size // 4), {False: 0.0, True: 0.0}
        bucket = SimpleNamespace(index=lambda: 1, buffer=lambda buffer=buffer: buffer, is_last=lambda: True)
        repeats = max(2, min(50, 2**23 // size))
        for turn in range(-1, TURNS):  # the first doesn't count
            for group.uses_shared_memory in (False, True) if turn % 2 else (True, False):
                dist.barrier()
                started = time.perf_counter()
                for _ in range(repeats):
                    group.exchange(bucket).wait()
                seconds[group.uses_shared_memory] += (time.perf_counter() - started) * (turn >= 0)
        found.append([seconds[False], seconds[True]])
    return found
