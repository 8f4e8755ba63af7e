"""What an all-reduce between hosts takes: latencies, and bytes over a bandwidth (Hockney 1994).

gloo, which the strategies use on CPUs, sends around a ring (Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce
algorithms for clusters of workstations"). Each of its messages waits for the receiver's notice that it is ready.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

UNITS = {"kbit/s": 1e3, "mbit/s": 1e6, "gbit/s": 1e9}
TIMES = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}
LATENCIES_A_MESSAGE = 2  # gloo/transport/tcp/pair.cc: the notice, then the data


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

    latency_seconds: float
    bandwidth_seconds: float

    @property
    def seconds(self) -> float:
        """Both together."""
        return self.latency_seconds + self.bandwidth_seconds


def ring(members: int, size: float, link: Link) -> Exchange:
    """Reduce-scatter and all-gather of `size` bytes: each member sends a part of them 2 (members - 1) times."""
    messages = 2 * (members - 1)
    return Exchange(
        messages * LATENCIES_A_MESSAGE * link.latency_seconds, messages * size / members / link.bytes_per_second
    )
