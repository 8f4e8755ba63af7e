"""What training costs beside its arithmetic: start-up, memory, and how time grows with the data."""

from __future__ import annotations

import time
from pathlib import Path

import matplotlib.pyplot as plt
import psutil
from rich.table import Table

from benchmarks import memory_probe
from benchmarks.setup import configured, interleaved, of_dpexp, out, paired_ratio, prepared, shown
from dpexp.analysis.estimate import geometric_mean
from dpexp.launchers.local import LocalLauncher
from dpexp.processes import launch
from dpexp.processes.barrier import BarrierMember
from dpexp.processes.world import WorldSpec
from dpexp.train.data.dataset import load
from dpexp.train.strategies import strategy_class

SIZES = (5_000, 10_000, 20_000, 40_000, 60_000)
MODELS = {"mlp": 20_000, "cnn": 2_000, "resnet18": 256}
MIB = 2**20


def run(rounds: int, folder: Path) -> None:
    """Print all of it; draw the growth."""
    _start_up()
    out.print()
    _memory()
    out.print()
    _growth(rounds, folder / "growth.png")
    out.print()
    _models(rounds)


def _start_up() -> None:
    config = configured("workers=4", "data.size=256", "epochs=1", "measurement.warmup_steps=2")
    spec = prepared(config, load(config))
    lasted = []
    for _ in range(11):
        started = time.perf_counter()
        LocalLauncher().run(spec)
        lasted.append(time.perf_counter() - started)
    out.print(f"starting 4 workers, one step and their end take {shown(geometric_mean(lasted[1:]))} s in all")


def _memory() -> None:
    dataset = load(configured("data.size=60000"))
    data_bytes = sum(tensor.nbytes for tensor in dataset.tensors.values())
    table = Table(box=None)
    for head in ("MiB", "private to each worker", "all processes together", "more than with one less"):
        table.add_column(head, justify="right" if head != "MiB" else "left")
    before = 0
    for workers in (1, 2, 3, 4):
        config = configured("data.size=60000", f"workers={workers}", "batch.scope=per_worker", "epochs=1")
        spec = prepared(config, dataset)
        shared = strategy_class(config).share(config, spec.initial)
        seats = BarrierMember.create(workers, 0.0)
        arguments = [(spec, own, seat) for own, seat in zip(shared, seats, strict=True)]
        with launch.running_worlds([WorldSpec(memory_probe.after_training, arguments)]) as running:
            for _ in range(workers):
                running.next_notice(0)
            together = _group_bytes()
            (private,) = running.reports()
        more = f"{(together - before) / MIB:.0f}" if before else ""
        table.add_row(f"sync_dp, {workers} workers", f"{max(private) / MIB:.0f}", f"{together / MIB:.0f}", more)
        before = together
    out.print(
        f"memory (proportional set size) when a worker has trained on 60,000 samples, with the parent and the fork "
        f"server; the data set takes {data_bytes / MIB:.0f} MiB, the gradients of a worker "
        f"{sum(tensor.nbytes for tensor in spec.initial.values()) / MIB:.1f} MiB\n"
    )
    out.print(table)


def _group_bytes() -> int:
    """Proportional set size of this process and all below it: what they take together, shared pages counted once."""
    own = psutil.Process()
    return sum(process.memory_full_info().pss for process in [own, *own.children(recursive=True)])


def _growth(rounds: int, path: Path) -> None:
    jobs = {"sequential": ["strategy=sequential"], "sync_dp, 2 workers": ["workers=2"]}
    dataset = load(configured("data.size=60000"))
    contestants = {
        f"{name} {size}": of_dpexp(dataset, *overrides, f"data.size={size}", "epochs=1")
        for name, overrides in jobs.items()
        for size in SIZES
    }
    seconds = interleaved(contestants, rounds)
    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    table = Table(box=None)
    for head in ("microseconds a sample", *(f"{size:,}" for size in SIZES), "least / most"):
        table.add_column(head, justify="right" if "a sample" not in head else "left")
    for name in jobs:
        per_sample = [geometric_mean([own / size for own in seconds[f"{name} {size}"]]) for size in SIZES]
        values = [1e6 * one.value for one in per_sample]
        table.add_row(name, *(f"{value:.1f}" for value in values), f"{min(values) / max(values):.2f}")
        bars = [[v - 1e6 * o.low for v, o in zip(values, per_sample, strict=True)]]
        bars += [[1e6 * o.high - v for v, o in zip(values, per_sample, strict=True)]]
        axes.errorbar(SIZES, values, bars, label=name, marker="o", capsize=3)
    axes.set(
        xlabel="training samples", ylabel="microseconds a sample", ylim=(0, None), title="Time a sample, by data size"
    )
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    out.print(table)


def _models(rounds: int) -> None:
    table = Table(box=None)
    for head in ("model", "samples", "ms a step, sequential", "speedup, 2 workers"):
        table.add_column(head, justify="right" if head != "model" else "left")
    for model, size in MODELS.items():
        overrides = [f"model={model}", f"data.size={size}", "epochs=1", "measurement.warmup_steps=2"]
        dataset = load(configured(*overrides))
        seconds = interleaved(
            {
                "one": of_dpexp(dataset, *overrides, "strategy=sequential"),
                "two": of_dpexp(dataset, *overrides, "workers=2"),
            },
            rounds,
        )
        steps = configured(*overrides, "strategy=sequential").updates
        step = geometric_mean([own / steps for own in seconds["one"]])
        table.add_row(model, f"{size:,}", shown(step, 1, 1e-3), shown(paired_ratio(seconds["one"], seconds["two"])))
    out.print(table)
