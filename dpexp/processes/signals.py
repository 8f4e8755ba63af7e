"""Ctrl-C and SIGTERM: they unwind the main process, but never while a worker is being started."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

PR_SET_PDEATHSIG = 1  # of Linux's prctl

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}  # exit statuses as shells have them

_received: list[int] = []


class Interrupted(BaseException):
    """A signal asked this process to end; no handler of errors takes it for one."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = STATUS[signal.Signals(number)]


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Within, both signals raise Interrupted in the main thread."""
    _received.clear()
    before = {number: signal.signal(number, _interrupt) for number in STATUS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _received.clear()


def check() -> None:
    """Raise Interrupted again if the first was lost: Python drops what is raised within a destructor."""
    if _received:
        raise Interrupted(_received[0])


class Pending:
    """Signals held back; `reader` is a descriptor that becomes readable when one arrives."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self.reader, self.writer = os.pipe()
        for end in (self.reader, self.writer):
            os.set_blocking(end, False)

    def receive(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        self.received.append(number)

    def drain(self) -> None:
        """Empty `reader`, where any signal writes, not only these two."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.reader, 4096)

    def close(self) -> None:
        """Close the descriptors."""
        os.close(self.reader)
        os.close(self.writer)


@contextlib.contextmanager
def postponed() -> Iterator[Pending]:
    """Within, both signals are held back until the end, so that nothing is left half done."""
    pending = Pending()
    if threading.current_thread() is not threading.main_thread():  # signals interrupt the main thread only
        try:
            yield pending
        finally:
            pending.close()
        return
    before = {number: signal.signal(number, pending.receive) for number in STATUS}
    wakeup = signal.set_wakeup_fd(pending.writer, warn_on_full_buffer=False)
    try:
        yield pending
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        pending.close()
        if pending.received:
            signal.raise_signal(pending.received[0])


@contextlib.contextmanager
def blocked() -> Iterator[None]:
    """Within, both signals are blocked for this thread, and for good in programs that it starts."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STATUS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def receive_when_parent_ends(number: int) -> None:
    """On Linux: this process receives the signal when the one that started it ends, however it does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    _received.append(number)
    raise Interrupted(number)
