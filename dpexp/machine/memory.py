"""The memory that processes have together: pages that several of them have count once."""

import re
from collections.abc import Collection, Sequence
from pathlib import Path

FIELDS = re.compile(r"^(\w+):\s*(\d+) kB$", re.MULTILINE)


class PeakMemory:
    """The highest memory use of some processes, of all looks. They should sleep then, between two steps."""

    def __init__(self) -> None:
        self.bytes: int | None = None  # of all together; None: not measured
        self.by_process: dict[int, int] = {}  # without what each shares, so these add up to less

    def look(self, processes: Collection[int]) -> None:
        """Read the memory of these processes, as it is and as it was at its highest."""
        fields_by_process = {process: fields for process in processes if (fields := _fields(process))}
        for process, fields in fields_by_process.items():
            self.by_process[process] = max(fields["private"] + fields["released"], self.by_process.get(process, 0))
        if fields_by_process and len(fields_by_process) == len(processes):
            self.bytes = max(_distinct_bytes(list(fields_by_process.values())), self.bytes or 0)


def in_words(size: float) -> str:
    """Return a number of bytes as text."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def _distinct_bytes(processes: Sequence[dict[str, int]]) -> int:
    """Return the bytes of all pages that any of these processes has or had.

    Linux only tells shares of pages that other programs may have, too (PSS). So this is the larger of two lower bounds:
    the private pages of all, and the shared pages of the one that has most, as where all are forked from one server;
    and the anonymous pages of all, which only forked relatives share, and the most that one has of files and of shared
    memory.
    """

    def total(name: str) -> int:
        return sum(process[name] for process in processes)

    def most(name: str) -> int:
        return max(process[name] for process in processes)

    by_sharing = total("private") + most("shared")
    by_kind = total("Pss_Anon") + most("RssFile") + most("RssShmem")
    return total("released") + max(by_sharing, by_kind)


def _fields(process: int) -> dict[str, int]:
    """Return memory figures of /proc/PID, in bytes; {} if it has ended, is another user's, or the kernel is too old."""
    try:
        text = "".join(Path(f"/proc/{process}/{name}").read_text() for name in ("smaps_rollup", "status"))
        fields = {name: 1024 * int(value) for name, value in FIELDS.findall(text)}
        private = fields["Private_Clean"] + fields["Private_Dirty"]
        return {name: fields[name] for name in ("RssFile", "RssShmem", "Pss_Anon")} | {
            "private": private,
            "shared": fields["Rss"] - private,
            "released": max(0, fields["VmHWM"] - fields["VmRSS"]),  # what a step needs, and gives back at its end
        }
    except (OSError, KeyError):
        return {}
