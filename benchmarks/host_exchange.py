"""All-reduces between two hosts, by size, beside what the latency and the bandwidth of the link allow."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.distributed as dist
from rich.table import Table
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from benchmarks.setup import out
from dpexp.analysis.decision.links import Link, ring_seconds
from dpexp.processes import launch
from dpexp.processes.world import WorldSpec
from dpexp.train.strategies.rendezvous import Rendezvous
from testbed.namespaces import enter

LOCAL_SIZE = 2
SIZES = [4**power for power in range(3, 13)]  # bytes: 64 B to 16 MiB
WAYS = ("gloo", "shared memory")  # within each host; between hosts, both are over gloo
COLORS = dict(zip(WAYS, ("#d55e00", "#0072b2"), strict=True))
_ports = itertools.count(29600)


def seconds(way: str, hosts: dict[str, str], sizes: Sequence[int]) -> list[float]:
    """Of one all-reduce of each size (bytes) by two workers on each host: the slowest worker's mean."""
    names = [name for name in hosts for _ in range(LOCAL_SIZE)]
    rendezvous = Rendezvous(next(iter(hosts.values())), next(_ports), "group")
    reports = launch.launch(WorldSpec(_all_reduces, [(way, name, rendezvous, sizes) for name in names]))
    return [max(times) for times in zip(*reports, strict=True)]


def _all_reduces(
    rank: int, way: str, namespace: str, rendezvous: Rendezvous, sizes: Sequence[int], notify: object
) -> list[float]:
    """In each process."""
    enter(namespace)
    torch.set_num_threads(1)
    store = TCPStore(rendezvous.host, rendezvous.port, is_master=True, wait_for_workers=False) if rank == 0 else None
    rendezvous.join(rank, 2 * LOCAL_SIZE)
    groups = [dist.new_group(range(local, 2 * LOCAL_SIZE, LOCAL_SIZE)) for local in range(LOCAL_SIZE)]
    group, share = (dist.group.WORLD, 1) if way == WAYS[0] else (groups[rank % LOCAL_SIZE], LOCAL_SIZE)
    assert isinstance(group, dist.ProcessGroup)
    found = []
    for size in sizes:
        gradient = torch.ones(max(1, size // 4 // share))
        repeats = max(5, min(50, 2**22 // size))
        for _ in range(3):
            dist.all_reduce(gradient, group=group)
        dist.barrier()
        started = time.perf_counter()
        for _ in range(repeats):
            dist.all_reduce(gradient, group=group)
        found.append((time.perf_counter() - started) / repeats)
        dist.barrier()
    del store  # rank 0 has served it until all were ready
    return found


def predicted(way: str, size: float, link: Link) -> float:
    """Seconds of a ring of all workers, or of the hosts, each with the sum of its workers."""
    return sum(ring_seconds(2 * LOCAL_SIZE if way == WAYS[0] else 2, size, link))


def show(found: dict[str, tuple[Link, dict[str, list[list[float]]]]], gradient_bytes: int, path: Path) -> None:
    """The row of the default model's gradient for each link, and the figure. Seconds by link, way, round and size.

    The last size is that gradient's, the others are SIZES.
    """
    table = Table(box=None)
    for head in (f"ms of an all-reduce of {gradient_bytes:,} bytes", WAYS[0], "predicted", WAYS[1], "predicted"):
        table.add_column(head, justify="left" if head.startswith("ms") else "right")
    for name, (link, ways) in found.items():
        cells = []
        for way, rounds in ways.items():
            low, middle, high = (1e3 * pick([r[-1] for r in rounds]) for pick in (min, statistics.median, max))
            model = predicted(way, gradient_bytes, link)
            cells += [f"{middle:.2f} ({low:.2f} to {high:.2f})", f"{1e3 * model:.2f}"]
        table.add_row(name, *cells)
    out.print(table)
    _draw(found, gradient_bytes, path)


def _draw(found: dict[str, tuple[Link, dict[str, list[list[float]]]]], gradient_bytes: int, path: Path) -> None:
    figure, panels = plt.subplots(1, len(found), figsize=(12, 4.4), sharey=True, layout="constrained")
    kibibytes = [size / 1024 for size in SIZES]
    for axes, (name, (link, ways)) in zip(panels, found.items(), strict=True):
        for way, rounds in ways.items():
            columns = [[1e3 * value for value in column] for column in zip(*rounds, strict=True)][: len(SIZES)]
            middle = [statistics.median(column) for column in columns]
            reach = [[m - min(c) for m, c in zip(middle, columns, strict=True)],
                     [max(c) - m for m, c in zip(middle, columns, strict=True)]]  # fmt: skip
            axes.errorbar(kibibytes, middle, reach, color=COLORS[way], fmt="o", markersize=4, label=f"{way}, measured")
            model = [1e3 * predicted(way, size, link) for size in SIZES]
            axes.plot(kibibytes, model, color=COLORS[way], linewidth=1.2, label=f"{way}, predicted")
        axes.axvline(gradient_bytes / 1024, color="0.7", linewidth=1, zorder=0)
        axes.set(xscale="log", yscale="log", xlabel="gradients (KiB)", title=name)
        axes.grid(alpha=0.3)
    place = panels[0].get_xaxis_transform()
    panels[0].text(
        gradient_bytes / 1024 * 0.8, 0.02, "default MLP", transform=place, color="0.4", fontsize=8, ha="right"
    )
    panels[0].set_ylabel("time of one all-reduce (ms)")
    panels[0].legend(fontsize=8, loc="upper left")
    figure.suptitle("Two workers on each of two hosts: measured, and predicted from the link's latency and bandwidth")
    figure.savefig(path, dpi=120)
    plt.close(figure)
