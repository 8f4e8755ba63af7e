"""What an all-reduce between hosts takes: a latency a round, and bytes over a bandwidth (Hockney 1994).

A ring costs as in Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations"; a
pair of trees as in Sanders, Speck and Traff 2009, "Two-tree algorithms for full bandwidth broadcast, reduction and
scan", which NCCL uses, too. Both are hierarchical here: within a host, workers have summed their gradients before.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

UNITS = {"kbit/s": 1e3, "mbit/s": 1e6, "gbit/s": 1e9}
TIMES = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}


@dataclass(frozen=True)
class Link:
    """Between two hosts, full duplex."""

    bytes_per_second: float
    latency_seconds: float

    @classmethod
    def parse(cls, text: str) -> Link:
        """From words such as `25Gbit/s,10us`. Raises ValueError."""
        found = re.fullmatch(r"([\d.]+)([kmg]bit/s),([\d.]+)(ns|us|ms|s)", text.strip().lower().replace(" ", ""))
        if found is None:
            raise ValueError(f"link {text!r}: expected a bandwidth and a latency, such as 25Gbit/s,10us")
        bandwidth, unit, latency, seconds = found.groups()
        try:
            link = cls(float(bandwidth) * UNITS[unit] / 8, float(latency) * TIMES[seconds])
        except ValueError as error:
            raise ValueError(f"link {text!r}: {error}") from error
        if link.bytes_per_second <= 0:
            raise ValueError(f"link {text!r}: the bandwidth must be above 0")
        return link


@dataclass(frozen=True)
class Exchange:
    """The seconds of one all-reduce between hosts."""

    name: str
    latency_seconds: float
    bandwidth_seconds: float

    @property
    def seconds(self) -> float:
        """Both together."""
        return self.latency_seconds + self.bandwidth_seconds


def ring(hosts: int, size: float, link: Link) -> Exchange:
    """Reduce-scatter and all-gather around a ring: the fewest bytes, the most rounds."""
    rounds = 2 * (hosts - 1)
    return Exchange("ring", rounds * link.latency_seconds, rounds * size / hosts / link.bytes_per_second)


def _tree(hosts: int, size: float, link: Link) -> Exchange:
    """Two binary trees, each with half of the gradient, pipelined."""
    rounds = 2 * math.ceil(math.log2(hosts))
    return Exchange("tree", rounds * link.latency_seconds, 2 * size / link.bytes_per_second)


def all_reduce(hosts: int, size: float, link: Link) -> Exchange:
    """Of `size` bytes by `hosts` hosts, each for all of its workers, by the faster algorithm."""
    if hosts == 1:
        return Exchange("none", 0.0, 0.0)
    return min(ring(hosts, size, link), _tree(hosts, size, link), key=lambda exchange: exchange.seconds)
