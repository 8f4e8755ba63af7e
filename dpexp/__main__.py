"""`python -m dpexp`. Define nothing else here: workers can't unpickle objects defined in `__main__`."""

import os
import signal
import sys


def run() -> None:
    """Run the command line and exit. Ctrl-C prints no traceback, even during the imports."""
    # With os._exit, because some libraries swallow exceptions during their import.
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))
    from dpexp.cli.app import main

    status = main()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # all output is written; only cleanup is left
    sys.exit(status)


if __name__ == "__main__":
    run()
