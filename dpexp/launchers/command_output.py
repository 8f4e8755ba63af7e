"""The line of a command's output that says why it failed."""

import itertools
import re
from collections.abc import Iterable
from pathlib import Path

TAIL_BYTES = 2**16

_RANK = re.compile(r"^\[rank\d+\]:\s*")
_ERROR = re.compile(r"(?:\w+\.)*\w*(?:Error|Exception|Interrupt|Exit)\b.*")
_REFUSED = re.compile(r"\S+: (?:error: |can't open file ).*")  # by argparse, by Python
_CHAINED = ("During handling of the above exception", "The above exception was the direct cause")
# Messages of launchers whose process has failed, and of processes that have lost another one.
_LOST_PEER = "Connection (closed|reset) by peer|connectFullMesh|Broken pipe"
_SECONDARY = re.compile(f"ChildFailedError|CalledProcessError|SignalException|{_LOST_PEER}")


def cause(lines: Iterable[str]) -> str:
    """Return the first error that ended a process by itself; else the last error of any kind; else the last line.

    Among errors caused elsewhere, one about a lost process is more useful than a launcher's.
    """
    texts = [text for text in (_RANK.sub("", line.strip()) for line in lines) if re.search(r"\w", text)]
    fatal_errors, errors, in_traceback = [], [], False
    for text, following in itertools.pairwise([*texts, ""]):
        in_traceback |= text.startswith("Traceback (most recent call last)")
        if _REFUSED.match(text) or (_ERROR.match(text) and not following.startswith(_CHAINED)):
            errors.append(text)
            if in_traceback or _REFUSED.match(text):
                fatal_errors.append(text)
            in_traceback = False
    causes, others = ([text for text in group if not _SECONDARY.search(text)] for group in (fatal_errors, errors))
    lost = [text for text in errors if lost_peer(text)]
    return next(iter([*causes, *others[-1:], *lost, *errors[-1:], *texts[-1:]]), "")


def lost_peer(line: str) -> bool:
    """Whether the line says that another process has gone."""
    return re.search(_LOST_PEER, line) is not None


def last_lines(path: Path) -> list[str]:
    """Return the last lines of a file; none if it can't be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            return file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
