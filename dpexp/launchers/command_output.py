"""What a command has written: the line that says why it failed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

TAIL_BYTES = 2**16

_ERROR = re.compile(r"^(?:\[rank\d+\]:\s*)?((?:\w+\.)*\w*(?:Error|Exception|Interrupt|Exit)\b.*)$")
# What launchers say when a process of theirs has failed, and processes when another one has.
_SECONDARY = ("ChildFailedError", "CalledProcessError", "Connection closed by peer", "Connection reset by peer")


def cause(lines: Iterable[str]) -> str:
    """The last error in these lines that no other one has caused; else the last line with words; else ""."""
    lines = [line.strip() for line in lines]
    errors = [found.group(1) for line in lines if (found := _ERROR.match(line))]
    causes = [error for error in errors if not any(sign in error for sign in _SECONDARY)]
    words = [line for line in lines if re.search(r"\w", line)]
    return next((found[-1] for found in (causes, errors, words) if found), "")


def last_lines(path: Path) -> list[str]:
    """Of a file; none where it can't be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            return file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
