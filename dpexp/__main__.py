"""`python -m dpexp`: import and call, no more (workers could not unpickle what is defined here)."""

import signal
import sys


def run() -> None:
    """Run the command line and exit; Ctrl-C is no traceback even while this program is still being imported."""
    try:
        from dpexp.app import main

        status = main()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is said: what is left is to clean up
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)


if __name__ == "__main__":
    run()
