"""CPU and memory limits from Linux's control groups (version 1 or 2), if there are any."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
UNLIMITED_BYTES = 2**60  # version 1 writes "no limit" as a number beyond this


def cpu_quota() -> float | None:
    """Return the CPUs that the cgroup and its parents allow; None without a limit."""
    quotas = []
    for folder in _folders("cpu"):
        for names in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
            with contextlib.suppress(OSError, ValueError):  # no such file, or the quota is "max"
                quota, period = " ".join((folder / name).read_text() for name in names).split()
                quotas.append(int(quota) / int(period))
    return min((quota for quota in quotas if quota > 0), default=None)  # version 1 writes "no limit" as -1


def throttled_seconds() -> float:
    """Return for how long CPU quotas have throttled this process's cgroup or its parents so far."""
    counters = [_fields(folder / "cpu.stat") for folder in _folders("cpu")]
    units = (("throttled_usec", 1e-6), ("throttled_time", 1e-9))  # of cgroups version 2 and version 1
    return max((unit * counter.get(name, 0) for counter in counters for name, unit in units), default=0.0)


def memory_limits() -> Iterator[tuple[int, int]]:
    """Yield limit and use, in bytes, of each cgroup that limits this process's memory. Caches count as free."""
    names = (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    )
    for folder in _folders("memory"):
        for limit, used, cached in names:
            with contextlib.suppress(OSError, ValueError):  # no such file, or the limit is "max"
                allowed = int((folder / limit).read_text())
                if allowed < UNLIMITED_BYTES:
                    yield allowed, int((folder / used).read_text()) - _fields(folder / "memory.stat").get(cached, 0)


def memory_kills() -> int:
    """Return how many processes of this machine the kernel has killed so far because memory was short."""
    return _fields(Path("/proc/vmstat")).get("oom_kill", 0)


def _folders(controller: str) -> Iterator[Path]:
    """Yield the folders of this process's cgroup and its parents for a controller."""
    with contextlib.suppress(OSError):
        for entry in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = entry.split(":", 2)
            if controllers == "" or controller in controllers.split(","):  # version 2 has one tree for all
                top = ROOT / controllers if (ROOT / controllers).is_dir() else ROOT / controller
                folder = top / path.lstrip("/")
                yield from (parent for parent in (folder, *folder.parents) if parent.is_relative_to(top))


def _fields(path: Path) -> dict[str, int]:
    """Read a file with lines like `name 123`; {} if it can't be read."""
    with contextlib.suppress(OSError, ValueError):
        return {name: int(value) for name, value in (line.split() for line in path.read_text().splitlines())}
    return {}
