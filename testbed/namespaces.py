"""Two hosts, as network namespaces of this machine, and a link between them."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

HOSTS = {f"dpexp{os.getpid()}-{number}": f"10.77.0.{number}" for number in (1, 2)}  # names and addresses
UNITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
CLONE_NEWNET = 0x40000000  # of Linux's setns


@contextlib.contextmanager
def linked(rate: str | None, delay_seconds: float = 0.0) -> Iterator[None]:
    """Two network namespaces, joined by a link of this rate in both directions; None: as fast as it is."""
    names = list(HOSTS)
    with contextlib.ExitStack() as cleanup:
        for name in names:
            cleanup.callback(subprocess.run, ["ip", "netns", "del", name], check=False, capture_output=True)
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        if delay_seconds:
            bits = float(rate[:-4]) * UNITS[rate[-4:].lower()] if rate else 100e9
            words = [word for host in HOSTS.items() for word in host] + [str(bits), str(delay_seconds)]
            relay = cleanup.enter_context(
                subprocess.Popen([sys.executable, "-m", "testbed.link", *words], stdout=subprocess.PIPE)
            )
            cleanup.callback(relay.kill)
            assert relay.stdout is not None
            if relay.stdout.readline() != b"up\n":
                raise RuntimeError("the link did not come up")
        else:
            _ip("link", "add", "eth0", "netns", names[0], "type", "veth", "peer", "name", "eth0", "netns", names[1])
            for name, address in HOSTS.items():
                _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
                _ip("-n", name, "link", "set", "eth0", "up")
                if rate is not None:
                    shape = ["tc", "-n", name, "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", rate]
                    subprocess.run([*shape, "burst", "64kb", "latency", "500ms"], check=True)
        yield


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def enter(namespace: str) -> None:
    """The calling thread, and those that it starts, have this namespace's network from now on."""
    with Path("/run/netns", namespace).open("rb") as network:
        if ctypes.CDLL(None, use_errno=True).setns(network.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"can't enter the network namespace {namespace}")
    os.environ["GLOO_SOCKET_IFNAME"] = "eth0"


def sent_bytes() -> int:
    """By the first host since its link was made, all that belongs to it included."""
    shown = subprocess.run(
        ["ip", "-n", next(iter(HOSTS)), "-s", "-j", "link", "show", "eth0"], check=True, capture_output=True
    )
    return int(json.loads(shown.stdout)[0]["stats64"]["tx"]["bytes"])
