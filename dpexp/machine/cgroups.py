"""What Linux's control groups allow this process, in version 1 or 2; nothing where there are none."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
UNLIMITED_BYTES = 2**60  # version 1 writes "no limit" as a number beyond this


def folders(controller: str) -> list[Path]:
    """The folders of this process's cgroup and those above it, that have to do with `controller`."""
    try:
        entries = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found: list[Path] = []
    for entry in entries:
        _, controllers, path = entry.split(":", 2)
        if controllers == "":  # version 2: any folder up to the root may set a limit
            top, folder = ROOT, ROOT / path.lstrip("/")
        elif controller in controllers.split(","):
            top = ROOT / controllers if (ROOT / controllers).is_dir() else ROOT / controller
            folder = top / path.lstrip("/")
        else:
            continue
        found += [folder, *(parent for parent in folder.parents if parent.is_relative_to(top))]
    return found


def cpu_quota() -> float | None:
    """CPUs that the cgroup and those above it allow, None when none sets a limit."""
    quotas = []
    for folder in folders("cpu"):
        with contextlib.suppress(OSError, ValueError):
            if (file := folder / "cpu.max").is_file():
                quota, period = file.read_text().split()
            else:
                quota = (folder / "cpu.cfs_quota_us").read_text().strip()
                period = (folder / "cpu.cfs_period_us").read_text()
            if quota not in ("max", "-1"):
                quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def throttled_seconds() -> float:
    """That the quotas of this process's cgroup and those above it held it back so far."""
    counters = list(_counters("cpu", "cpu.stat"))
    seconds = [counter.get("throttled_usec", 0) / 1e6 for counter in counters]  # version 2
    seconds += [counter.get("throttled_time", 0) / 1e9 for counter in counters]  # version 1
    return max(seconds, default=0.0)


def memory_limit_bytes() -> int | None:
    """Memory that the cgroup and those above it allow, None when none sets a limit."""
    return min((limit for limit, _ in _memory()), default=None)


def memory_left_bytes() -> int | None:
    """Memory that may still be taken before one of these limits is met, None when there is none."""
    return min((limit - used for limit, used in _memory()), default=None)


def memory_kills() -> int:
    """How many processes the kernel has killed for want of memory so far: here, and on the whole machine."""
    kills = [
        fields.get("oom_kill", 0)
        for name in ("memory.events", "memory.oom_control")
        for fields in _counters("memory", name)
    ]
    with contextlib.suppress(OSError):
        kills.append(_fields(Path("/proc/vmstat")).get("oom_kill", 0))
    return sum(kills)


def _memory() -> Iterator[tuple[int, int]]:
    """Limit and use, in bytes, of each cgroup that limits this process's memory. What can be dropped counts as free."""
    names = (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    )
    for folder in folders("memory"):
        for limit, used, cached in names:
            with contextlib.suppress(OSError, ValueError):  # no such file, or the limit is "max"
                allowed = int((folder / limit).read_text())
                if allowed < UNLIMITED_BYTES:
                    yield allowed, int((folder / used).read_text()) - _fields(folder / "memory.stat").get(cached, 0)


def _counters(controller: str, name: str) -> Iterator[dict[str, int]]:
    for folder in folders(controller):
        with contextlib.suppress(OSError, ValueError):
            yield _fields(folder / name)


def _fields(path: Path) -> dict[str, int]:
    """A file of lines like `name 123`."""
    return {name: int(value) for name, value in (line.split() for line in path.read_text().splitlines())}
