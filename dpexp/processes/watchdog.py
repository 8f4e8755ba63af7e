"""Waits for messages of other processes while they make progress, and describes those that hang."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from dpexp.errors import WorkerError
from dpexp.machine import signals

if TYPE_CHECKING:
    from dpexp.processes.world import WorkerProcess

POLL_SECONDS = 0.2
STACK_SECONDS, STACK_POLL_SECONDS = 3.0, 0.05


def wait_until(
    done: Callable[[], bool],
    seconds: float,
    connections: Callable[[], Iterable[Any]] = tuple,
    receive: Callable[[Any], None] = lambda readable: None,
    progress: Callable[[], Any] = lambda: None,
) -> bool:
    """Call `receive` with each readable one of `connections()` until `done()` is true; return True then.

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


def hang_error(workers: Sequence[WorkerProcess], seconds: float) -> WorkerError:
    """Return the error for processes that have made no progress for `seconds`, with the stacks of all."""
    stopped = [worker for worker in workers if worker.is_stopped()]
    states = [
        f"{worker.name} {worker.heartbeat}{', stopped by a signal' if worker in stopped else ''}" for worker in workers
    ]
    # The stopped ones last: asking continues them, and then others can proceed, too.
    for asked in ([worker for worker in workers if worker not in stopped], stopped):
        for worker in asked:
            worker.ask_for_stacks()
        deadline, seen = time.monotonic() + STACK_SECONDS, [""]
        while time.monotonic() < deadline and not (all(seen) and seen == [worker.stacks() for worker in asked]):
            seen = [worker.stacks() for worker in asked]
            time.sleep(STACK_POLL_SECONDS)
    details = [
        f"{state}:\n{worker.stacks() or 'wrote no stack'}" for state, worker in zip(states, workers, strict=True)
    ]
    return WorkerError(
        f"no worker made progress for {seconds:g} s: {'; '.join(states)}; "
        "if they are only slow, increase launch.timeout_seconds",
        "\n".join(details),
    )
