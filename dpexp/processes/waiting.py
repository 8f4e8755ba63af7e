"""Waiting for messages of other processes while they make progress, and for other threads of this process."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from dpexp.machine import signals

POLL_SECONDS = 0.2
IDLE_POLL_SECONDS, MAX_IDLE_SECONDS = 1e-3, 0.05


def wait_until(
    done: Callable[[], bool],
    seconds: float,
    connections: Callable[[], Iterable[Any]] = tuple,
    receive: Callable[[Any], None] = lambda readable: None,
    progress: Callable[[], Any] = lambda: None,
) -> bool:
    """Pass each readable one of `connections()` to `receive` until `done()`; return whether that became true.

    Returns False when `progress()` has been the same for `seconds`. Time in which this process was itself held up
    doesn't count. Raises signals.Interrupted, and what the functions raise.
    """
    poll_seconds = min(POLL_SECONDS, seconds / 4)
    state, unchanged_seconds, checked = progress(), 0.0, time.monotonic()
    while not done():
        if unchanged_seconds > seconds:
            return False
        for readable in signals.wait(connections(), poll_seconds):
            receive(readable)
        now, last, state = time.monotonic(), state, progress()
        unchanged_seconds = 0.0 if state != last else unchanged_seconds + min(now - checked, 2 * poll_seconds)
        checked = now
    return True


def wait_until_idle() -> None:
    """Return when all other threads sleep, or after MAX_IDLE_SECONDS: a library's pool spins after its last work."""
    deadline = time.monotonic() + MAX_IDLE_SECONDS
    while time.monotonic() < deadline and _any_running():
        time.sleep(IDLE_POLL_SECONDS)


def _any_running() -> bool:
    this = str(threading.get_native_id())
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has just ended
            if task.name != this and (task / "stat").read_text().rpartition(") ")[2].startswith("R"):
                return True
    return False
