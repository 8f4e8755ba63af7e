"""Two hosts, as network namespaces joined by a link of a known rate: projections beside what ddp really reaches."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rich.table import Table

from benchmarks.setup import command, out, shown
from dpexp.analysis.row import Row
from dpexp.analysis.table import aggregate
from dpexp.decision.links import Link
from dpexp.decision.projection import Cluster, StepModel

RATES = ("50Mbit", "200Mbit", "1Gbit")
LATENCY = "60us"  # of a message between the namespaces over gloo, there and back, halved; the kernel adds no delay
JOB = ["data.size=10000", "linear_kernel=torch", "measurement.best_sequential=false"]
HOSTS = {"dpexp0": "10.77.0.1", "dpexp1": "10.77.0.2"}


def run(rounds: int) -> None:
    """Measure two workers, one on each host, at each rate; project the same from one worker's measurement."""
    if os.geteuid() != 0:
        out.print("not run: network namespaces need root")
        return
    table = Table(box=None)
    for head in ("ddp, 2 hosts x 1 worker", "measured speedup", "projected from 1 worker", "projected / measured"):
        table.add_column(head, justify="left" if head[0] == "d" else "right")
    for rate in RATES:
        ones = command("strategy=ddp", "workers=1", *JOB, "measurement.best_sequential=true")[0]
        with linked(rate):
            measured = on_hosts([*JOB, "strategy=ddp", "workers=2"])
        size = 4 * (784 * 256 + 256 + 256 * 10 + 10)
        cluster = Cluster(1, Link.parse(f"{rate}/s,{LATENCY}"), float(size))
        projected = StepModel(ones).project(2, cluster)
        ratio = f"{projected.speedup.value / measured.speedup.value:.2f}"
        table.add_row(f"{rate}/s", shown(measured.speedup, 3), shown(projected.speedup, 3), ratio)
    out.print(table)


@contextlib.contextmanager
def linked(rate: str) -> Iterator[None]:
    """Two network namespaces, joined by a link of this rate in both directions."""
    names = list(HOSTS)
    try:
        for name in names:
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip("link", "add", "eth0", "netns", names[0], "type", "veth", "peer", "name", "eth0", "netns", names[1])
        for name, address in HOSTS.items():
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            shape = ["tc", "-n", name, "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", rate]
            subprocess.run([*shape, "burst", "64kb", "latency", "500ms"], check=True)
        yield
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def on_hosts(overrides: list[str]) -> Row:
    """The row of a command that torchrun starts on both hosts, one worker each."""
    with tempfile.TemporaryDirectory() as folder:
        started = []
        for rank, name in enumerate(HOSTS):
            run = f"torchrun --nnodes=2 --node-rank={rank} --nproc-per-node=1 --master-port=29511".split()
            words = ["ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run", *run[1:]]
            words += [
                f"--master-addr={next(iter(HOSTS.values()))}",
                "-m",
                "dpexp",
                *overrides,
                f"hydra.run.dir={folder}",
            ]
            environment = os.environ | {"GLOO_SOCKET_IFNAME": "eth0"}
            started.append(subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL))
        try:
            statuses = [process.wait(timeout=600) for process in started]
        finally:
            for process in started:
                process.terminate()
                process.wait()
        if any(statuses):
            raise RuntimeError(f"the hosts ended with statuses {statuses}")
        return aggregate([Path(folder)]).good[0]
