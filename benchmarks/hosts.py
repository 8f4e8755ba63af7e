"""Two hosts, as network namespaces joined by a link: projections beside what ddp reaches, over gloo and in memory."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.table import Table

from benchmarks import host_exchange
from benchmarks.setup import command, out, paired_ratio, shown
from dpexp.analysis.decision.links import Link
from dpexp.analysis.decision.projection import Cluster, StepModel
from dpexp.analysis.estimate import geometric_mean
from dpexp.analysis.table import aggregate
from dpexp.analysis.table_row import Row
from dpexp.config.job import CANDIDATE
from dpexp.results import storage
from testbed.namespaces import HOSTS, linked, sent_bytes

GLOO, MEMORY = host_exchange.WAYS
WAYS = {GLOO: ["strategy=ddp"], MEMORY: ["strategy=ddp", "strategy.exchange=shared_memory"]}
RATES = ("50Mbit", "200Mbit", "1Gbit")
LINKS = ((None, 0.0), ("1Gbit", 0.0), ("1Gbit", 0.001), ("1Gbit", 0.005))  # bits a second, and the delay one way
OVERLAP_LINKS = (("5Gbit", 0.0), ("1Gbit", 0.0))
GRADIENT_BYTES = 4 * (784 * 256 + 256 + 256 * 10 + 10)
JOB = ["data.size=10000", "measurement.best_sequential=false"]
LARGER_JOB = (
    "model=resnet18 data=synthetic data.shape=[3,32,32] data.size=256 batch.size=16 epochs=1 measurement.repeats=2 "
    "measurement.precision=null measurement.warmup_steps=2 measurement.best_sequential=false"
).split()


def run(rounds: int, folder: Path) -> None:
    """Projections of two workers, one on each host; then both exchanges with two workers on each, in turn."""
    if os.geteuid() != 0:
        out.print("not run: network namespaces need root")
        return
    latency = _latency_seconds()
    out.print(
        f"latency of the link without a delay: {1e6 * latency:.0f} us, from the smallest all-reduce of one rank a host"
    )
    out.print()
    _projections(latency)
    out.print()
    _strategies(rounds)
    out.print()
    _overlap(rounds)
    out.print()
    _exchanges(rounds, latency, folder / "hosts.png")


def _latency_seconds() -> float:
    """Of a link without a delay."""
    with linked(None):
        tiny = statistics.median(host_exchange.seconds(MEMORY, HOSTS, [8])[0] for _ in range(3))
    return tiny / host_exchange.predicted(MEMORY, 0.0, Link(1.0, 1.0))


def _projections(latency: float) -> None:
    table = Table(box=None)
    for head in ("ddp, 2 hosts x 1 worker", "measured speedup", "projected from 1 worker", "projected / measured"):
        table.add_column(head, justify="left" if head[0] == "d" else "right")
    for rate in RATES:
        ones = command("strategy=ddp", "workers=1", *JOB, "measurement.best_sequential=true")[0]
        with linked(rate):
            measured = on_hosts([*JOB, "strategy=ddp", "workers=2"], 1)[0]
        cluster = Cluster(1, _link(rate, latency), float(GRADIENT_BYTES))
        projected = StepModel(ones).project(2, cluster)
        ratio = f"{projected.speedup.value / measured.speedup.value:.2f}"
        table.add_row(f"{rate}/s", shown(measured.speedup, 3), shown(projected.speedup, 3), ratio)
    out.print(table)


def _strategies(rounds: int) -> None:
    """Commands in turn, so that drift of the machine's speed hits both."""
    table = Table(box=None)
    heads = (
        "2 hosts x 2 workers",
        GLOO,
        MEMORY,
        f"time of {GLOO} / {MEMORY}",
        f"MB a step and host: {GLOO}",
        MEMORY,
    )
    for head in heads:
        table.add_column(head, justify="left" if head[0] == "2" else "right")
    for rate, delay in LINKS:
        found: dict[str, list[Row]] = {GLOO: [], MEMORY: []}
        sent: dict[str, list[float]] = {GLOO: [], MEMORY: []}
        with linked(rate, delay):
            for number in range(rounds):
                for way in sorted(found, reverse=number % 2 == 1):
                    row, step_bytes = on_hosts([*JOB, *WAYS[way], "workers=4", "measurement.whole_trainings=never"], 2)
                    found[way].append(row)
                    sent[way].append(step_bytes)
        speedups = {name: geometric_mean([row.speedup.value for row in rows]) for name, rows in found.items()}
        ratio = paired_ratio([row.speedup.value for row in found[MEMORY]], [row.speedup.value for row in found[GLOO]])
        megabytes = [f"{statistics.median(sent[name]) / 1e6:.2f}" for name in found]
        table.add_row(
            _name(rate, delay), *(shown(speedup, 3) for speedup in speedups.values()), shown(ratio, 2), *megabytes
        )
    out.print(table)


def _overlap(rounds: int) -> None:
    """A larger model, one worker on each host: is an exchange hidden behind the rest of backward?

    Trainings are compared by their time: their baseline is the same program.
    """
    table = Table(box=None)
    heads = ("resnet18, 2 x 1: ms a step", *WAYS, f"{GLOO} / {MEMORY}")
    for head in heads:
        table.add_column(head, justify="left" if head[0] == "r" else "right")
    for rate, delay in OVERLAP_LINKS:
        found: dict[str, list[float]] = {way: [] for way in WAYS}
        with linked(rate, delay):
            for number in range(rounds):
                for way in sorted(found, reverse=number % 2 == 1):
                    row, _ = on_hosts([*LARGER_JOB, *WAYS[way], "workers=2"], 1)
                    found[way].append(1e3 * row.seconds.value / (row.updates or 1))
        milliseconds = [shown(geometric_mean(values), 0) for values in found.values()]
        table.add_row(_name(rate, delay), *milliseconds, shown(paired_ratio(found[GLOO], found[MEMORY])))
    out.print(table)


def _exchanges(rounds: int, latency: float, path: Path) -> None:
    """All-reduces alone."""
    sizes = [*host_exchange.SIZES, GRADIENT_BYTES]
    found = {}
    for rate, delay in LINKS:
        if rate is not None:
            ways: dict[str, list[list[float]]] = {GLOO: [], MEMORY: []}
            with linked(rate, delay):
                for number in range(rounds):
                    for way in sorted(ways, reverse=number % 2 == 1):
                        ways[way].append(host_exchange.seconds(way, HOSTS, sizes))
            found[_name(rate, delay)] = (_link(rate, latency + delay), ways)
    host_exchange.show(found, GRADIENT_BYTES, path)


def _link(rate: str, latency: float) -> Link:
    return Link(Link.parse(f"{rate}/s,0us").bytes_per_second, latency)


def _name(rate: str | None, delay: float) -> str:
    return f"{rate or 'as fast as it is'}, {1e3 * delay:g} ms"


def on_hosts(overrides: list[str], workers_each: int) -> tuple[Row, float]:
    """The row of a command that torchrun starts on both hosts, and the bytes that a host sends in a step."""
    with tempfile.TemporaryDirectory() as folder:
        before = sent_bytes()
        started = []
        for rank, name in enumerate(HOSTS):
            run = f"torchrun --nnodes=2 --node-rank={rank} --nproc-per-node={workers_each} --master-port=29511".split()
            words = ["ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run", *run[1:]]
            words += [f"--master-addr={next(iter(HOSTS.values()))}", "-m", "dpexp", *overrides]
            environment = os.environ | {"GLOO_SOCKET_IFNAME": "eth0"}
            started.append(
                subprocess.Popen([*words, f"hydra.run.dir={folder}"], env=environment, stdout=subprocess.DEVNULL)
            )
        try:
            statuses = [process.wait(timeout=600) for process in started]
        finally:
            for process in started:
                process.terminate()
                process.wait()
        if any(statuses):
            raise RuntimeError(f"the hosts ended with statuses {statuses}")
        (row,) = aggregate([Path(folder)]).measured
        result = storage.read(Path(folder) / storage.FILE_NAME)
        arms = [block.arms[CANDIDATE] for block in result.blocks]
        steps = sum(arm.first_steps[-1] + len(arm.turns[-1]) for arm in arms)
        return row, (sent_bytes() - before) / steps
