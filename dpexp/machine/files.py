"""Files: written so that a reader finds the old one or the new one, never half of one; claimed."""

from __future__ import annotations

import fcntl
import os
import uuid
from pathlib import Path


def user_cache() -> Path:
    """The user's cache folder for dpexp."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dpexp"


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write beside `path`, flush to disk, rename over it, flush the folder, which must exist. Raises OSError."""
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}.part"
    try:
        with temporary.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def remove_leftovers(folder: Path) -> None:
    """Remove what a process that died while writing into `folder` has left. Nobody else may write there."""
    for leftover in folder.glob(".*.part"):
        leftover.unlink(missing_ok=True)


class Claim:
    """A folder that this process alone works in, until `close` or its death. Raises BlockingIOError, OSError."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of the folder itself: no file is left
        except BaseException:
            os.close(self._descriptor)
            raise

    def close(self) -> None:
        """Let others work there."""
        os.close(self._descriptor)
