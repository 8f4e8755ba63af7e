"""The memory that processes have together: pages that several of them have count once."""

import re
from collections.abc import Collection
from pathlib import Path

FIELDS = re.compile(r"^(\w+):\s*(\d+) kB$", re.MULTILINE)


def peak_bytes(processes: Collection[int]) -> int | None:
    """Return the memory of these processes at its highest; None if one can't be read. They should sleep meanwhile.

    Linux only tells shares of pages that other programs may have, too (PSS). So this is the larger of two lower bounds:
    the private pages of all, and the shared pages of the one that has most, as where all are forked from one server;
    and the anonymous pages of all, which only forked relatives share, and the most that one has of files and of shared
    memory.
    """
    every = [_fields(process) for process in processes]
    if not every or not all(every):
        return None

    def total(name: str) -> int:
        return sum(fields[name] for fields in every)

    def most(name: str) -> int:
        return max(fields[name] for fields in every)

    by_sharing = total("private") + most("shared")
    by_kind = total("Pss_Anon") + most("RssFile") + most("RssShmem")
    return total("released") + max(by_sharing, by_kind)


def bytes_in_words(size: float) -> str:
    """Return a number of bytes as text."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


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
