"""The memory of trainings: what results say, against the distinct pages that their processes have while they train."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from basics import TINY, composed

from dpexp.launchers.command_processes import CommandSpec
from dpexp.launchers.commands import running_commands
from dpexp.launchers.local import LocalLauncher
from dpexp.machine.memory import peak_bytes
from dpexp.processes.turn import Turn
from dpexp.train.data.dataset import load
from dpexp.train.models.initial_state import initial_state
from dpexp.train.worker import TrainingSpec

AGREEMENT = 0.05
READS, STEPS = 12, 12
READS_OF_SCRIPT = 4  # each of which takes seconds, for all its processes
PAGE, PRESENT, FRAME = 4096, np.uint64(1 << 63), np.uint64((1 << 55) - 1)

LOADERS = """
import os, torch, torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

several = int(os.environ.get("WORLD_SIZE", 1)) > 1
if several:
    dist.init_process_group("gloo")
data = TensorDataset(torch.randn(2000, 3, 32, 32), torch.randint(0, 10, (2000,)))
model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 900, 10))
model = DistributedDataParallel(model) if several else model
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
loader = DataLoader(data, batch_size=32, num_workers=1, persistent_workers=True)
while True:
    for inputs, labels in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
"""


def frames(process):
    """The numbers of the physical pages that a process has, some of them more than once; only root may see them."""
    found = [np.zeros(0, np.int64)]
    with contextlib.suppress(OSError), Path(f"/proc/{process}/pagemap").open("rb", buffering=0) as pages:
        for line in Path(f"/proc/{process}/maps").read_text().splitlines():
            begin, end = (int(number, 16) for number in line.split()[0].split("-"))
            if end < 1 << 63:
                pages.seek(begin // PAGE * 8)
                entries = np.frombuffer(pages.read((end - begin) // PAGE * 8), np.uint64)
                found.append((entries[(entries & PRESENT) != 0] & FRAME).astype(np.int64))
    return np.concatenate(found)


def send(process, number):
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)


class Watching(threading.Thread):
    """Reads the distinct pages of some processes in a tight loop, until it is left; then the sum of their PSS.

    They are stopped for each read: else peaks would not be seen together, and pages that move would count twice.
    """

    def __init__(self, processes):
        super().__init__()
        self.processes, self.over = processes, threading.Event()
        self.bytes = self.pss = self.reads = 0

    def run(self):
        while not self.over.is_set():
            processes = self.processes()
            for process in processes:
                send(process, signal.SIGSTOP)
            found = np.concatenate([frames(process) for process in processes])
            for process in processes:
                send(process, signal.SIGCONT)
            self.bytes = max(self.bytes, PAGE * int(np.count_nonzero(np.bincount(found)[1:])))
            self.reads += 1
            time.sleep(random.uniform(0.0, 0.02))

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *error):
        self.over.set()
        self.join()
        self.pss = sum(psutil.Process(process).memory_full_info().pss for process in self.processes())


def agree(what, peak: int, seen: Watching):
    told = f"{what}: {peak / 2**20:.1f} MiB, distinct pages {seen.bytes / 2**20:.1f} MiB"
    off = peak / seen.bytes - 1
    print(f"{told}, {100 * off:+.1f} %, {seen.reads} reads; sum of PSS {seen.pss / 2**20:.1f} MiB")  # noqa: T201
    assert abs(off) < AGREEMENT, told


needs_frames = pytest.mark.skipif(not frames("self").any(), reason="only root may see the numbers of pages")


@needs_frames
@pytest.mark.slow
@pytest.mark.parametrize(("model", "workers"), [("mlp", 1), ("cnn", 2)])
def test_the_memory_of_our_workers_is_that_of_their_distinct_pages(model, workers):
    config = composed(f"model={model}", "data=synthetic", "data.size=4000", f"workers={workers}")
    dataset = load(config)
    spec = TrainingSpec(config, dataset, initial_state(config, dataset), in_turns=True)
    beside = TrainingSpec(config.baseline(), dataset, spec.initial, in_turns=True)
    with LocalLauncher().segments({"candidate": spec, "baseline": beside}) as programs:
        programs.run_turn("baseline", Turn(0, STEPS))
        with Watching(lambda: programs._processes.pids(0)) as seen:
            while seen.reads < READS:
                programs.run_turn("candidate", Turn(0, STEPS))
        programs.end()
    agree(f"{model}, {workers} workers", programs.memory_bytes["candidate"], seen)


@needs_frames
@pytest.mark.slow
def test_the_memory_of_a_script_has_that_of_its_helpers(tmp_path):
    (tmp_path / "train.py").write_text(LOADERS)
    words = ["torchrun", "--standalone", "--nproc-per-node=2", str(tmp_path / "train.py")]
    command = CommandSpec("script", [words], 2, 1, 64)
    with running_commands({"script": command}, {"script": tmp_path / "output"}, 200) as worlds:
        world = worlds["script"]
        with Watching(lambda: list(world.processes.processes)) as seen:
            while seen.reads < READS_OF_SCRIPT:
                world.run_turn(Turn(0, STEPS))
        world.collect_final_reports()
        processes = len(world.processes.processes)
    assert processes == 5  # torchrun, two ranks, and a worker of each rank's data loader
    agree("script, 2 workers, 5 processes", world.processes.memory_bytes, seen)


def test_processes_that_have_ended_or_are_unreadable_are_no_sum():
    own, ended = psutil.Process().pid, 2**22 + 1
    assert peak_bytes([ended]) is None
    assert peak_bytes([own, ended]) is None
    assert peak_bytes([own]) > 2**20


def test_results_have_the_memory_of_each_arm(dpexp, tmp_path):
    assert dpexp(*TINY, "workers=2").status == 0
    (block,) = json.loads((tmp_path / "out/result.json").read_text())["blocks"]
    assert all(arm["memory_bytes"] > 2**24 for arm in block["arms"].values())
