"""Ctrl-C and SIGTERM: they unwind the main process, but never while a worker is being started."""

import contextlib
import ctypes
import signal
import threading
from collections.abc import Iterable, Iterator
from multiprocessing import connection
from types import FrameType
from typing import Any, NoReturn

PR_SET_PDEATHSIG = 1  # an option of Linux's prctl

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}  # exit statuses as shells have them

_received: list[int] = []
_deferred: list[int] = []


class Interrupted(BaseException):
    """A signal asked this process to end. Not an Exception, so that error handlers don't catch it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = STATUS[signal.Signals(number)]


@contextlib.contextmanager
def raise_interrupts() -> Iterator[None]:
    """Raise Interrupted in the main thread at both signals while the context is open."""
    try:
        with _handled_by(_interrupt):
            yield
    finally:
        _received.clear()


def raise_pending() -> None:
    """Raise Interrupted again if the first one was lost: Python drops exceptions within a destructor."""
    if _received:
        raise Interrupted(_received[0])


@contextlib.contextmanager
def defer() -> Iterator[None]:
    """Hold back both signals until the context ends or `wait` is called, so that nothing is left half done."""
    if threading.current_thread() is not threading.main_thread():  # Python handles signals in the main thread only
        yield
        return
    try:
        with _handled_by(_defer):
            yield
    finally:
        if _deferred:
            number = _deferred[0]
            _deferred.clear()
            signal.raise_signal(number)


def wait(connections: Iterable[Any], seconds: float) -> list[Any]:
    """Return the readable ones of `connections` as soon as there are any; none after `seconds`.

    Raises Interrupted, at the latest after `seconds`, if a signal was deferred.
    """
    readable = connection.wait(list(connections), seconds)
    if _deferred:
        raise Interrupted(_deferred[0])
    return readable


@contextlib.contextmanager
def block() -> Iterator[None]:
    """Block both signals for this thread while the context is open, and for good in programs that it starts."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STATUS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def set_parent_death_signal(number: int) -> None:
    """Let this process receive the signal when its parent process ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


@contextlib.contextmanager
def _handled_by(handler: Any) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in STATUS}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    _received.append(number)
    raise Interrupted(number)


def _defer(number: int, frame: FrameType | None) -> None:
    _deferred.append(number)
