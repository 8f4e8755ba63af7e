"""How long an all-reduce between hosts takes: latencies, and bytes over a bandwidth (Hockney 1994).

gloo sends around a ring (Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce
algorithms for clusters of workstations"). Each of its messages waits for the receiver's notice that it is ready.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass

UNITS = {"kbit/s": 1e3, "mbit/s": 1e6, "gbit/s": 1e9}
TIMES = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}
LATENCIES_PER_MESSAGE = 2  # gloo/transport/tcp/pair.cc: the notice, then the data


@dataclass(frozen=True)
class Link:
    """A full-duplex link between two hosts."""

    bytes_per_second: float
    latency_seconds: float

    @classmethod
    def parse(cls, text: str) -> Link:
        """Parse a link such as `25Gbit/s,10us`. Raises ArgumentTypeError."""
        number = r"(\d+(?:\.\d+)?)"
        match = re.fullmatch(rf"{number}([kmg]bit/s),{number}(ns|us|ms|s)", text.lower().replace(" ", ""))
        if match is None or float(match[1]) == 0:
            raise argparse.ArgumentTypeError(f"link {text!r}: write a bandwidth and a latency, such as 25Gbit/s,10us")
        bandwidth, unit, latency, seconds = match.groups()
        return cls(float(bandwidth) * UNITS[unit] / 8, float(latency) * TIMES[seconds])


def ring_seconds(members: int, size: float, link: Link) -> tuple[float, float]:
    """Return the seconds that latency and bandwidth take in an all-reduce of `size` bytes.

    Reduce-scatter and all-gather: each member sends a part of the bytes 2 (members - 1) times.
    """
    messages = 2 * (members - 1)
    latency_seconds = messages * LATENCIES_PER_MESSAGE * link.latency_seconds
    return latency_seconds, messages * size / members / link.bytes_per_second
