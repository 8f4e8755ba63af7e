"""A program that prints how long a cache line takes from one core to others and back; see core_latency.

It imports little, so that it starts at once, and forks, which a process with threads can't.
"""

from __future__ import annotations

import mmap
import os
import sys
import time

ROUND_TRIPS = 2000  # a millisecond
PATIENCE = 300_000  # looks at a line, about 10 ms: longer than another program keeps a core for itself
MOST_MISSED = 10  # answers that took longer
MOST_PARTNERS = 7
PING, PONG = 0, 256  # offsets of two cache lines
END = 255


def round_trip_seconds(core: int, other: int) -> float | None:
    """The least of many round trips between two cores; None where one of them was never free."""
    memory = mmap.mmap(-1, mmap.PAGESIZE)
    process = os.fork()
    if not process:
        try:
            os.sched_setaffinity(0, {other})
            _answer(memory)
        finally:
            os._exit(0)
    try:
        os.sched_setaffinity(0, {core})
        trips: list[float] = []
        for number in range(ROUND_TRIPS + MOST_MISSED):
            seconds = _round_trip(memory, number % (END - 1) + 1)
            if seconds is not None:
                trips.append(seconds)
            elif number - len(trips) == MOST_MISSED:
                break
    finally:
        memory[PING] = END
        os.waitpid(process, 0)
    return min(trips, default=None)


def _round_trip(memory: mmap.mmap, value: int) -> float | None:
    started = time.perf_counter()
    memory[PING] = value
    for _ in range(PATIENCE):
        if memory[PONG] == value:
            return time.perf_counter() - started
    return None


def _answer(memory: mmap.mmap) -> None:
    """Write back each value that arrives; return at the end, or when none arrives for long."""
    value, idle = 0, 0
    while value != END and idle < 10 * PATIENCE:
        idle += 1
        if memory[PING] != value:
            value, idle = memory[PING], 0
            memory[PONG] = value


def main() -> None:
    """Print the mean over pairs of cores, in seconds; nothing where there is one core, or it can't be chosen."""
    cores = sorted(os.sched_getaffinity(0))
    try:
        trips = [round_trip_seconds(cores[0], other) for other in cores[1 : MOST_PARTNERS + 1]]
    except OSError:  # a sandbox
        return
    found = [seconds for seconds in trips if seconds is not None]
    if found:
        sys.stdout.write(f"{sum(found) / len(found):.4g}")


if __name__ == "__main__":
    main()
