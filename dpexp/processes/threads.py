"""Other threads of this process: a library's pool spins for some milliseconds after its last work."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

POLL_SECONDS, MOST_SECONDS = 1e-3, 0.05


def wait_until_idle() -> None:
    """Return when all other threads sleep, or after MOST_SECONDS, at once where the system doesn't tell (not Linux)."""
    tasks = Path("/proc/self/task")
    deadline = time.monotonic() + MOST_SECONDS
    while tasks.is_dir() and time.monotonic() < deadline and _any_running(tasks):
        time.sleep(POLL_SECONDS)


def _any_running(tasks: Path) -> bool:
    this = str(threading.get_native_id())
    for task in tasks.iterdir():
        if task.name != this:
            with contextlib.suppress(OSError):  # it has just ended
                if (task / "stat").read_text().rpartition(") ")[2].startswith("R"):
                    return True
    return False
