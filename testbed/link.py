"""A link between two network namespaces with a delay, for kernels without netem: packets wait in this process.

    python -m testbed.link NAMESPACE ADDRESS NAMESPACE ADDRESS BITS_PER_SECOND DELAY_SECONDS

It makes a TUN device in each, prints a line when they are up, and passes packets on until it is ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
import subprocess
import sys
import time
from collections import deque

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
MTU = 16384
MAX_QUEUED_SECONDS = 0.5  # what a sender is ahead of the link; later packets are dropped


def device(name: str, namespace: str, address: str) -> int:
    """A new TUN device, up in a namespace; its descriptor."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN | IFF_NO_PI))
    inside = ["ip", "-n", namespace]
    subprocess.run(["ip", "link", "set", name, "netns", namespace], check=True)
    subprocess.run([*inside, "link", "set", name, "name", "eth0", "mtu", str(MTU)], check=True)
    subprocess.run([*inside, "addr", "add", f"{address}/24", "dev", "eth0"], check=True)
    subprocess.run([*inside, "link", "set", "eth0", "up"], check=True)
    return descriptor


class Direction:
    """Packets from one device to the other."""

    def __init__(self, source: int, target: int, bits_per_second: float, delay_seconds: float) -> None:
        self.source, self._target = source, target
        self._bits_per_second, self._delay_seconds = bits_per_second, delay_seconds
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._free = 0.0  # when the link has sent all that came before

    def take(self, now: float) -> None:
        """Queue what has come."""
        with contextlib.suppress(BlockingIOError):
            while True:
                packet = os.read(self.source, 65536)
                sent = max(now, self._free) + 8 * len(packet) / self._bits_per_second
                if sent < now + MAX_QUEUED_SECONDS:
                    self._free = sent
                    self._waiting.append((sent + self._delay_seconds, packet))

    def deliver(self, now: float) -> float:
        """Pass on what is due; when the next packet is."""
        while self._waiting and self._waiting[0][0] <= now:
            with contextlib.suppress(BlockingIOError):  # a full device drops it
                os.write(self._target, self._waiting.popleft()[1])
        return self._waiting[0][0] if self._waiting else now + 1.0


def main() -> None:
    """Pass packets on until the parent ends."""
    first, first_address, second, second_address, rate, delay = sys.argv[1:]
    ends = [device(f"dpexp{os.getpid()}{end}"[:15], *where) for end, where in
            zip("ab", ((first, first_address), (second, second_address)), strict=True)]  # fmt: skip
    directions = [Direction(source, target, float(rate), float(delay)) for source, target in (ends, reversed(ends))]
    print("up", flush=True)
    parent = os.getppid()
    while os.getppid() == parent:
        now = time.monotonic()
        due = min(direction.deliver(now) for direction in directions)
        ready, _, _ = select.select(ends, [], [], max(0.0, due - time.monotonic()))
        now = time.monotonic()
        for direction in directions:
            if direction.source in ready:
                direction.take(now)


if __name__ == "__main__":
    main()
