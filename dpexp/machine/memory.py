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
            self.by_process[process] = max(fields["own"] + fields["before"], self.by_process.get(process, 0))
        if fields_by_process and len(fields_by_process) == len(processes):
            self.bytes = max(_together(list(fields_by_process.values())), self.bytes or 0)


def in_words(size: float) -> str:
    """Return a number of bytes as text."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def _together(processes: Sequence[dict[str, int]]) -> int:
    """Return the bytes of all pages that any of these processes has or had.

    Linux only tells shares of pages that other programs may have, too (PSS). So this is the larger of two lower bounds:
    what each has alone, and the most that one shares, as where all are forked from one server; and what they have of
    anonymous pages, which only forked relatives share, and the most that one has of files and shared memory.
    """
    sums, most = (
        {name: combine(process[name] for process in processes) for name in processes[0]} for combine in (sum, max)
    )
    alike = sums["own"] + max(process["Rss"] - process["own"] for process in processes)
    return sums["before"] + max(alike, sums["Pss_Anon"] + most["RssFile"] + most["RssShmem"])


def _fields(process: int) -> dict[str, int]:
    """Return memory figures of /proc/PID, in bytes; {} if it has ended, is another user's, or the kernel is too old."""
    try:
        text = "".join(Path(f"/proc/{process}/{name}").read_text() for name in ("smaps_rollup", "status"))
        fields = {name: 1024 * int(value) for name, value in FIELDS.findall(text)}
        return {name: fields[name] for name in ("Rss", "RssFile", "RssShmem", "Pss_Anon")} | {
            "own": fields["Private_Clean"] + fields["Private_Dirty"],
            "before": max(0, fields["VmHWM"] - fields["VmRSS"]),  # more: what a step needs, and gives back at its end
        }
    except (OSError, KeyError):
        return {}
