"""Whole trainings: dpexp's strategies beside a plain loop, torch's DDP, Lightning, the notebook, and the limits."""

from __future__ import annotations

import statistics

import torch
from rich.table import Table

from benchmarks import peers
from benchmarks.setup import (
    BATCH,
    EPOCHS,
    SAMPLES,
    Contestant,
    configured,
    interleaved,
    of_dpexp,
    out,
    paired_ratio,
    prepared,
    shown,
    slowest,
)
from dpexp.analysis.estimate import geometric_mean
from dpexp.machine import environment
from dpexp.processes import fork_server
from dpexp.processes.shared_memory import SharedTensors
from dpexp.train.data.dataset import Dataset, load
from dpexp.train.strategies import Ddp

LOOP, SEQUENTIAL = "hand-written loop, 1 thread", "dpexp sequential"
LIMITS = ("matrix products alone, torch (MKL)", "matrix products alone, oneDNN")


def run(rounds: int) -> None:
    """Run all contestants round after round; print the table and the ratios."""
    dataset = load(configured())
    seconds = interleaved(_contestants(dataset), rounds)
    out.print(
        f"784-256-10 MLP on MNIST, {SAMPLES:,} samples, {EPOCHS} epoch, batch {BATCH} a worker unless said, one "
        f"thread a worker (the notebook: a thread a core)\n{rounds} interleaved rounds after a discarded one, every "
        "training in fresh processes; geometric mean and 95 % interval\n"
    )
    table = Table(box=None)
    for head in ("", "seconds", "time / hand-written loop"):
        table.add_column(head, justify="right" if head else "left")
    for name, values in seconds.items():
        table.add_row(name, shown(geometric_mean(values)), shown(paired_ratio(values, seconds[LOOP])))
    out.print(table)
    if reason := peers.missing("lightning"):
        out.print(f"Lightning was not run: {reason}")
    _print_ratios(seconds)


def _contestants(dataset: Dataset) -> dict[str, Contestant]:
    inputs = dataset.tensors["train_inputs"].mul(255).round().to(torch.uint8).squeeze(1)
    images = SharedTensors.copy_of({"images": inputs, "labels": dataset.tensors["train_labels"]})

    def of_peer(peer: fork_server.Target, workers: int, processes: int = 1, threads: int = 1) -> Contestant:
        job = peers.Job(images, workers, EPOCHS, BATCH, threads)

        def run_once() -> float:
            shared = Ddp.share(configured(f"workers={workers}"), images) if peer is peers.ddp else [None] * processes
            return slowest(peer, [(job, own) for own in shared])

        return run_once

    def independent(workers: int) -> Contestant:
        """As many sequential trainings at once, of as many samples each as a worker gets: what the machine allows."""
        spec = prepared(configured("strategy=sequential", "workers=1", f"data.size={SAMPLES // workers}"), dataset)
        arguments = [(spec, None)] * workers
        return lambda: slowest(_alone, arguments)

    found: dict[str, Contestant] = {
        LIMITS[0]: of_peer(peers.products_by_torch, 1),
        LOOP: of_peer(peers.hand_written, 1),
        "hand-written loop, 2 threads": of_peer(peers.hand_written, 1, threads=2),
        SEQUENTIAL: of_dpexp(dataset, "strategy=sequential"),
    }
    if torch.backends.mkldnn.is_available():
        found[LIMITS[1]] = of_peer(peers.products_by_onednn, 1)
    for workers in (2, 4):
        found[f"{workers} independent sequential trainings"] = independent(workers)
        for strategy in ("sync_dp", "ddp", "emulated"):
            found[f"dpexp {strategy}, {workers} workers"] = of_dpexp(
                dataset, f"strategy={strategy}", f"workers={workers}"
            )
        found[f"torch DDP over gloo, {workers} workers"] = of_peer(peers.ddp, workers)
    found["dpexp sequential, batch 256"] = of_dpexp(dataset, "strategy=sequential", "batch.size=256")
    found["dpexp sync_dp, 2 workers, batch 256"] = of_dpexp(dataset, "workers=2", "batch.size=256")
    for workers in (1, 2, 4):
        if not peers.missing("lightning"):
            name = f"Lightning{' ddp_spawn' if workers > 1 else ''}, {workers} workers"
            found[name] = lambda workers=workers: peers.lightning(workers, SAMPLES, EPOCHS, BATCH)  # type: ignore[misc]
        found[f"notebook loop, {workers} workers"] = of_peer(peers.notebook, workers)
    return found


def _alone(rank: int, spec: object, shared: None, notify: object) -> float:
    """One of several independent sequential trainings."""
    from dpexp.train import worker

    assert isinstance(spec, worker.TrainingSpec)
    return worker.run(0, spec, shared, None, lambda notice: None).seconds


def _print_ratios(seconds: dict[str, list[float]]) -> None:
    def ratio(text: str, slow: str, fast: str) -> None:
        if slow in seconds and fast in seconds:
            out.print(f"{text}: {shown(paired_ratio(seconds[slow], seconds[fast]))}")

    limit = min((name for name in LIMITS if name in seconds), key=lambda name: statistics.median(seconds[name]))
    out.print()
    for workers in (2, 4):
        ours = f"dpexp sync_dp, {workers} workers"
        ratio(f"sync_dp's speedup over dpexp sequential, {workers} workers", SEQUENTIAL, ours)
        ratio(
            f"  what {workers} independent trainings reach", SEQUENTIAL, f"{workers} independent sequential trainings"
        )
        ratio(
            f"sync_dp is faster than torch DDP over gloo by, {workers} workers",
            f"torch DDP over gloo, {workers} workers",
            ours,
        )
        ratio(
            f"sync_dp is faster than Lightning by, {workers} workers", f"Lightning ddp_spawn, {workers} workers", ours
        )
    ratio(
        "sync_dp's speedup, 2 workers, batch 256", "dpexp sequential, batch 256", "dpexp sync_dp, 2 workers, batch 256"
    )
    ratio(
        "dpexp's ddp / the same loop written for DDP, 2 workers",
        "dpexp ddp, 2 workers",
        "torch DDP over gloo, 2 workers",
    )
    ratio("sequential / hand-written loop", SEQUENTIAL, LOOP)
    ratio("sequential / its matrix products alone (the faster library)", SEQUENTIAL, limit)
    # A multiply and an add a weight and product; the first layer has no third product: its inputs need no gradient.
    operations = 2 * (2 * 784 * 256 + 3 * 256 * 10) * SAMPLES * EPOCHS
    for name in LIMITS:
        if name in seconds:
            out.print(f"{name}: {shown(geometric_mean([operations / own for own in seconds[name]]), 0, 1e9)} GFLOP/s")
    cores = environment.usable_cores()
    for workers in (2, 4):
        parts = min(workers, cores)
        lost = {
            name: statistics.median(o - w / parts for o, w in zip(seconds[name], seconds[alone], strict=True))
            for name, alone in (
                (f"dpexp sync_dp, {workers} workers", SEQUENTIAL),
                (f"torch DDP over gloo, {workers} workers", LOOP),
            )
        }
        text = "; ".join(f"{name.split(',')[0]} {value:.2f} s" for name, value in lost.items())
        out.print(f"lost against one core's loop split in {parts}, {workers} workers, median of rounds: {text}")
