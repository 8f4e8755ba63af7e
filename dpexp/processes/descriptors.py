"""File descriptors that a process passes to the workers that it starts."""

from __future__ import annotations

import os
from multiprocessing import reduction
from typing import Any


class Descriptor:
    """A file descriptor, closed when nothing refers to it.

    Pickling passes a duplicate, so it works only while a worker process is being started.
    """

    number = -1  # as long as it isn't open, or not ours to close

    def __init__(self, number: int) -> None:
        self.number = number

    def close(self) -> None:
        """Close it in this process."""
        if self.number >= 0:
            os.close(self.number)
            self.number = -1

    def __del__(self) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        assert self.number >= 0, "pickled after close"
        return _received, (type(self), reduction.DupFd(self.number))


def _received(kind: type[Descriptor], duplicate: Any) -> Descriptor:
    return kind(duplicate.detach())
