"""`python -m benchmarks`: the same training in every way, interleaved in one run, as ratios with their spread."""

from __future__ import annotations

import argparse
import datetime
import socket
import statistics
from collections.abc import Callable

import torch
from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.table import Table

from benchmarks import peers
from dpexp import environment, kernels, launch, models, worker
from dpexp.compose import config_folder, to_experiment
from dpexp.config import ExperimentConfig
from dpexp.data.dataset import Dataset, load
from dpexp.measurement import train_group
from dpexp.shared_memory import SharedTensors
from dpexp.stats import geometric_mean, paired_ratio

SAMPLES, EPOCHS, BATCH = 40_000, 2, 64
REFERENCE, LIMIT = "hand-written loop", "matrix products alone, 1 worker"
Contestant = Callable[[], float]


def configured(*overrides: str) -> ExperimentConfig:
    """A composed job of the benchmark's size."""
    own = [f"data.size={SAMPLES}", f"epochs={EPOCHS}", f"batch.size={BATCH}", *overrides]
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return to_experiment(compose("config", overrides=own))


def of_dpexp(strategy: str, workers: int, dataset: Dataset) -> Contestant:
    """One training by a strategy of dpexp."""
    config = configured(f"strategy={strategy}", f"workers={workers}")
    kernel = kernels.choose(config, models.build(config.model, dataset.input_shape, dataset.classes))
    work = worker.Work(config, dataset, models.initial_state(config, dataset), kernel, evaluate=False, checkpoint=None)
    return lambda: train_group(work, lambda epoch: None).seconds


def of_peer(peer: Callable[..., float], images: SharedTensors, workers: int, processes: int) -> Contestant:
    """One training by another way."""

    def run() -> float:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        job = peers.Job(images, workers, EPOCHS, BATCH, port)
        return float(max(launch.launch(peer, [(job, None)] * processes, lambda notice: None)))

    return run


def contestants() -> dict[str, Contestant]:
    """All ways, by name."""
    dataset = load(configured())
    inputs = dataset.tensors["train_inputs"].mul(255).round().to(torch.uint8).squeeze(1)
    images = SharedTensors.copy_of({"images": inputs, "labels": dataset.tensors["train_labels"]})
    return {
        LIMIT: of_peer(peers.matrix_products, images, 1, 1),
        REFERENCE: of_peer(peers.hand_written, images, 1, 1),
        "dpexp sequential": of_dpexp("sequential", 1, dataset),
        "dpexp sync_dp, 2 workers": of_dpexp("sync_dp", 2, dataset),
        "dpexp sync_dp, 4 workers": of_dpexp("sync_dp", 4, dataset),
        "dpexp emulated, 2 workers": of_dpexp("emulated", 2, dataset),
        "dpexp emulated, 4 workers": of_dpexp("emulated", 4, dataset),
        "torch DDP over gloo, 2 workers": of_peer(peers.ddp, images, 2, 2),
        "torch DDP over gloo, 4 workers": of_peer(peers.ddp, images, 4, 4),
        "notebook loop, 1 worker": of_peer(peers.notebook, images, 1, 1),
        "notebook loop, 2 workers": of_peer(peers.notebook, images, 2, 1),
        "notebook loop, 4 workers": of_peer(peers.notebook, images, 4, 1),
    }


def main() -> None:
    """Run all contestants in turn, round after round, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="kept rounds, after one that is discarded")
    rounds = parser.parse_args().rounds
    progress = Console(stderr=True)
    runs = contestants()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        names = list(runs) if number % 2 == 0 else list(reversed(runs))
        for name in names:
            progress.print(f"round {number} of {rounds}: {name}", end="\r", soft_wrap=True)
            seconds[name].append(runs[name]())
            progress.print(" " * 60, end="\r")
    show({name: values[1:] for name, values in seconds.items()})


def show(seconds: dict[str, list[float]]) -> None:
    """The table, and the ratios that the project's bars are about."""
    console = Console(width=110, highlight=False)
    machine = environment.describe().machine
    today = datetime.datetime.now(datetime.timezone.utc).date()
    console.print(f"{today}: {machine}")
    console.print(
        f"784-256-10 MLP on MNIST, {SAMPLES:,} samples, {EPOCHS} epochs, batch {BATCH} a worker, one thread a worker "
        f"(the notebook's loop: a thread a core)\n{len(seconds[REFERENCE])} interleaved rounds after a "
        "discarded one, every training in fresh processes; geometric mean and 95 % interval",
        soft_wrap=True,
    )
    table = Table(box=None)
    for head in ("", "seconds", f"time / {REFERENCE}"):
        table.add_column(head, justify="left" if not head else "right")
    for name, values in seconds.items():
        mean, ratio = geometric_mean(values), paired_ratio(values, seconds[REFERENCE])
        table.add_row(
            name,
            f"{mean.value:.2f} ({mean.low:.2f} to {mean.high:.2f})",
            f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})",
        )
    console.print(table)
    for what, slow, fast in (
        ("sync_dp's speedup over sequential, 2 workers", "dpexp sequential", "dpexp sync_dp, 2 workers"),
        ("sync_dp's speedup over sequential, 4 workers", "dpexp sequential", "dpexp sync_dp, 4 workers"),
        ("sync_dp against DDP, 2 workers", "torch DDP over gloo, 2 workers", "dpexp sync_dp, 2 workers"),
        ("sync_dp against DDP, 4 workers", "torch DDP over gloo, 4 workers", "dpexp sync_dp, 4 workers"),
        ("DDP against the hand-written loop, 2 workers", REFERENCE, "torch DDP over gloo, 2 workers"),
    ):
        ratio = paired_ratio(seconds[slow], seconds[fast])
        console.print(f"{what}: {ratio.value:.2f} times as fast ({ratio.low:.2f} to {ratio.high:.2f})")
    # A multiply and an add a weight and product; the first layer has no third product, its inputs need no gradient.
    products = 2 * (2 * 784 * 256 + 3 * 256 * 10) * SAMPLES * EPOCHS
    rate = geometric_mean([products / own for own in seconds[LIMIT]])
    console.print(f"matrix products: {rate.value / 1e9:.0f} GFLOP/s ({rate.low / 1e9:.0f} to {rate.high / 1e9:.0f})")
    cores = environment.usable_cores()
    for workers in (2, 4):
        parts = min(workers, cores)
        lost = {
            name: [own - whole / parts for own, whole in zip(seconds[name], seconds[alone], strict=True)]
            for name, alone in (
                (f"dpexp sync_dp, {workers} workers", "dpexp sequential"),
                (f"torch DDP over gloo, {workers} workers", REFERENCE),
            )
        }
        text = "; ".join(f"{name.split(',')[0]} {statistics.median(values):.2f} s" for name, values in lost.items())
        console.print(f"lost against the same loop split in {parts}, {workers} workers, median: {text}", soft_wrap=True)


if __name__ == "__main__":
    main()
