"""Files that are written atomically: a reader finds the old one or the new one, never half of one; folder locks."""

import contextlib
import fcntl
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from dpexp.errors import ConfigError, ResultError


def user_cache() -> Path:
    """Return the user's cache folder for dpexp."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dpexp"


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write beside `path`, flush to disk, rename, and flush the folder, which must exist. Raises OSError."""
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
    """Remove the files of a process that died while writing into `folder`. Nobody else may write there."""
    for leftover in folder.glob(".*.part"):
        leftover.unlink(missing_ok=True)


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Lock the folder for this process alone while the context is open. Raises ConfigError, ResultError."""
    with contextlib.ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder, os.O_RDONLY)
            held.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # locks the folder itself: no lock file is left
        except BlockingIOError as error:
            raise ConfigError(f"{folder}: another dpexp is writing there; wait until it ends") from error
        except OSError as error:
            raise ResultError(f"can't write the output folder {folder}: {error.strerror}") from error
        yield
