"""The total memory of several processes: shared pages count once."""

import re
from collections.abc import Collection
from pathlib import Path

FIELDS = re.compile(r"^(\w+):\s*(\d+) kB$", re.MULTILINE)


def peak_bytes(processes: Collection[int]) -> int | None:
    """Return the peak memory of these processes; None if any can't be read. Call it while they are stopped.

    Linux reports only proportional shares (PSS) of pages that other programs may map, too. This is the larger of two
    lower bounds: (1) the private pages of all, plus the shared pages of the process that has the most, as if all shared
    them; (2) the anonymous pages of all, plus the largest amounts of file pages and of shared memory of one process.
    """
    fields_of_all = [_fields(process) for process in processes]
    if not fields_of_all or not all(fields_of_all):
        return None

    def total(name: str) -> int:
        return sum(fields[name] for fields in fields_of_all)

    def largest(name: str) -> int:
        return max(fields[name] for fields in fields_of_all)

    by_sharing = total("private") + largest("shared")
    by_kind = total("Pss_Anon") + largest("RssFile") + largest("RssShmem")
    return total("released") + max(by_sharing, by_kind)


def format_bytes(size: float) -> str:
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
            "released": max(0, fields["VmHWM"] - fields["VmRSS"]),  # freed since the peak, such as at the end of a step
        }
    except (OSError, KeyError):
        return {}
