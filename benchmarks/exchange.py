"""Gradient exchange alone: sums in shared memory beside gloo's and Open MPI's all-reduce, by size."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from rich.table import Table
from torch import nn

from benchmarks import peers
from benchmarks.setup import configured, out, prepared, shown, slowest
from dpexp.analysis.estimate import geometric_mean
from dpexp.processes import launch
from dpexp.processes.barrier import BarrierMember, spin_seconds
from dpexp.processes.shared_memory import SharedTensors
from dpexp.processes.world import WorldSpec
from dpexp.train.data.dataset import load
from dpexp.train.models import architectures
from dpexp.train.models.optimizers import Optimizer
from dpexp.train.strategies import Ddp, SyncDataParallel
from dpexp.train.strategies.reduce_scatter import ReduceScatter

SIZES = [2**power for power in range(8, 25)]  # float32 elements: 1 KiB to 64 MiB
MLP_ELEMENTS = 203_530
SHARDED, ONE_SHOT = "dpexp, each rank sums its part", "one-shot, each rank sums all"
COLORS = {SHARDED: "#0072b2", ONE_SHOT: "#56b4e9", "gloo": "#d55e00", "Open MPI": "#009e73"}


def run(rounds: int, folder: Path) -> None:
    """Time every way at every size; print the default model's row and draw the figure."""
    without_mpi = peers.missing("mpi4py", "mpirun")
    names = [SHARDED, ONE_SHOT, "gloo", *([] if without_mpi else ["Open MPI"])]
    sizes = [*SIZES, MLP_ELEMENTS]
    seconds: dict[tuple[str, int], list[list[float]]] = {(n, w): [] for n in names for w in (2, 4)}
    steps: dict[int, list[float]] = {2: [], 4: []}
    for number in range(rounds + 1):
        for workers in (2, 4):
            for name in names if number % 2 == 0 else reversed(names):
                seconds[name, workers].append(_time(name, workers, sizes))
            steps[workers].append(_update_seconds(workers))
    kept = {key: values[1:] for key, values in seconds.items()}
    bandwidth = _bandwidth()
    out.print(f"gradients of the default MLP ({4 * MLP_ELEMENTS:,} bytes), microseconds; {rounds} interleaved rounds\n")
    table = Table(box=None)
    for head in ("", "2 workers", "4 workers"):
        table.add_column(head, justify="right" if head else "left")
    for name in names:
        row = [shown(geometric_mean([one[-1] for one in kept[name, w]]), 0, 1e-6) for w in (2, 4)]
        table.add_row(f"all-reduce: {name}", *row)
    table.add_row(
        "sync_dp's update of the default MLP",
        *(shown(geometric_mean(steps[w][1:]), 0, 1e-6) for w in (2, 4)),
    )
    table.add_row("an SGD update of all parameters alone, 1 worker", *[shown(_sgd_seconds(), 0, 1e-6)] * 2)
    out.print(table)
    if without_mpi:
        out.print(f"Open MPI was not run: {without_mpi}")
    out.print(f"memory bandwidth, one core copying 64 MiB: {bandwidth / 1e9:.1f} GB/s read and as much written")
    _draw(kept, bandwidth, folder / "exchange.png")


def _repeats(elements: int) -> int:
    return max(5, min(300, 2**23 // elements))


def _time(name: str, workers: int, sizes: list[int]) -> list[float]:
    """Seconds of one all-reduce for each size, the slowest rank's mean."""
    if name == "Open MPI":
        return peers.open_mpi(workers, sizes, [_repeats(size) for size in sizes])
    config = configured(f"workers={workers}")
    if name == "gloo":
        shared: list[Any] = list(Ddp.share(config, SharedTensors.copy_of({})))
    else:
        arena = SharedTensors.allocate(
            {"gradients": ((workers, max(sizes)), torch.float32), "total": ((max(sizes),), torch.float32)}
        )
        shared = [
            (seat, arena) for seat in BarrierMember.create(workers, spin_seconds(workers * config.threads_per_worker))
        ]
    arguments = [(name, workers, sizes, own) for own in shared]
    reports = launch.launch(WorldSpec(_all_reduces, arguments))
    return [max(times) for times in zip(*reports, strict=True)]


def _all_reduces(rank: int, name: str, workers: int, sizes: list[int], shared: Any, notify: object) -> list[float]:
    """In each process: the mean seconds of one all-reduce, for each size."""
    torch.set_num_threads(1)
    if name == "gloo":
        shared.join(rank, workers)
        barrier: Callable[[], Any] = torch.distributed.barrier
    else:
        barrier = shared[0].wait
    seconds = []
    for elements in sizes:
        one = _one_all_reduce(rank, name, workers, elements, shared)
        for _ in range(3):
            one()
        barrier()
        started = time.perf_counter()
        for _ in range(_repeats(elements)):
            one()
        seconds.append((time.perf_counter() - started) / _repeats(elements))
        barrier()
    return seconds


def _one_all_reduce(rank: int, name: str, workers: int, elements: int, shared: Any) -> Callable[[], None]:
    if name == "gloo":
        own = torch.ones(elements)

        def by_gloo() -> None:
            torch.distributed.all_reduce(own)

        return by_gloo
    seat, arena = shared
    padded = -(-elements // (16 * workers)) * 16 * workers
    buffers = arena["gradients"].view(-1)[: workers * (arena["gradients"].numel() // workers)].view(workers, -1)
    buffers, total = buffers[:, :padded], arena["total"][:padded]
    if name == SHARDED:
        reduction = ReduceScatter([nn.Parameter(torch.empty(padded))], total, buffers, rank)

        def sharded() -> None:
            seat.wait()  # all gradients are written
            reduction.sum_chunk()
            reduction.chunk.copy_(reduction.total)
            seat.wait()  # the sum is complete, for all to read

        return sharded
    private = torch.empty(padded)

    def one_shot() -> None:
        seat.wait()  # all gradients are written; the next go into a second buffer, so that one barrier is enough
        torch.add(buffers[0], buffers[1], out=private)
        for buffer in buffers[2:]:
            private.add_(buffer)

    return one_shot


def _update_seconds(workers: int) -> float:
    """Seconds of one `SyncDataParallel.update` of the default model."""
    config = configured(f"workers={workers}")
    spec = prepared(config, load(config))
    shared = SyncDataParallel.share(config, spec.initial)
    return slowest(_updates, [(spec, own) for own in shared])


def _updates(rank: int, spec: Any, shared: Any, notify: object) -> float:
    torch.set_num_threads(1)
    model = architectures.build_model(spec.config.model, spec.dataset.input_shape, spec.dataset.classes)
    strategy = SyncDataParallel(spec.config, rank, model, spec.initial, shared)
    strategy.reset()
    gradients = [(parameter, torch.ones_like(parameter)) for parameter in model.parameters()]
    rounds = []
    for _ in range(11):
        strategy.barrier()
        started = time.perf_counter()
        for _ in range(50):
            strategy.begin_step()
            for parameter, gradient in gradients:
                parameter.grad = gradient  # as backward leaves it
            strategy.update()
        rounds.append((time.perf_counter() - started) / 50)
    return statistics.median(rounds[1:])


def _sgd_seconds() -> Any:
    """What the update alone costs one process, without anybody to exchange with."""
    config = configured()
    parameters = [torch.zeros(MLP_ELEMENTS)]
    optimizer, gradient = Optimizer(config.optimizer, config.learning_rate, parameters), torch.ones(MLP_ELEMENTS)
    torch.set_num_threads(1)
    rounds = []
    for _ in range(6):
        started = time.perf_counter()
        for _ in range(300):
            optimizer.step([gradient])
        rounds.append((time.perf_counter() - started) / 300)
    return geometric_mean(rounds[1:])


def _bandwidth() -> float:
    """Bytes a second that one core copies, out of cache."""
    torch.set_num_threads(1)
    source, target = torch.ones(2**24), torch.empty(2**24)
    times = []
    for _ in range(8):
        started = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - started)
    return source.nbytes / statistics.median(times[1:])


def _draw(kept: dict[tuple[str, int], list[list[float]]], bandwidth: float, path: Path) -> None:
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.6), sharey=True, layout="constrained")
    kibibytes = [4 * size / 1024 for size in SIZES]
    for workers, axes in zip((2, 4), panels, strict=True):
        for name, color in COLORS.items():
            if (name, workers) in kept:
                columns = list(zip(*kept[name, workers], strict=True))[: len(SIZES)]
                middle = [1e6 * statistics.median(column) for column in columns]
                low, high = ([1e6 * pick(column) for column in columns] for pick in (min, max))
                axes.plot(kibibytes, middle, color=color, label=name, marker="o", markersize=3)
                axes.fill_between(kibibytes, low, high, color=color, alpha=0.15, linewidth=0)
        line = [1e6 * 1024 * size / bandwidth for size in kibibytes]
        axes.plot(kibibytes, line, color="0.4", linestyle="--", label="one copy at one core's memory bandwidth")
        axes.axvline(4 * MLP_ELEMENTS / 1024, color="0.7", linewidth=1)
        axes.text(4 * MLP_ELEMENTS / 1024 * 1.1, 3, "default\nMLP", color="0.4", fontsize=8)
        axes.set(xscale="log", yscale="log", xlabel="gradients (KiB)", title=f"{workers} workers")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("time of one all-reduce (microseconds)")
    panels[0].legend(fontsize=8, loc="upper left")
    figure.suptitle("All-reduce on one machine: median and range of the rounds")
    figure.savefig(path, dpi=120)
    plt.close(figure)
