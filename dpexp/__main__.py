"""`python -m dpexp`: import and call, no more (workers could not unpickle what is defined here)."""

import os
import signal
import sys


def run() -> None:
    """Run the command line and exit; Ctrl-C is no traceback even while this program is still being imported."""
    # Not by an exception: some libraries drop it, and Python itself takes one within exec() for the signal's death.
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))
    from dpexp.cli.app import main

    status = main()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # all output is written; only cleanup is left
    sys.exit(status)


if __name__ == "__main__":
    run()
