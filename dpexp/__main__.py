"""`python -m dpexp`: import and call, no more (workers could not unpickle what is defined here)."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import NoReturn


def run() -> None:
    """Run the command line and exit; Ctrl-C is no traceback even while this program is still being imported."""
    received = False

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        nonlocal received
        received = True
        raise KeyboardInterrupt

    try:
        signal.signal(signal.SIGINT, interrupt)
        from dpexp.app import main

        if received:  # while a library was imported that lets no exception out
            raise KeyboardInterrupt
        status = main()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is said: what is left is to clean up
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)


if __name__ == "__main__":
    run()
