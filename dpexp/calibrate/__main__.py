"""`python -m dpexp.calibrate`: does dpexp measure correctly on this machine?"""

from __future__ import annotations

import argparse
import sys

from dpexp.calibrate.checks import checks
from dpexp.errors import DpexpError
from dpexp.machine import environment
from dpexp.machine.exclusive import exclusive
from dpexp.processes import signals
from dpexp.report import terminal


def main() -> int:
    """Print a line for each check; the exit status is 0 when all passed."""
    argparse.ArgumentParser(prog="python -m dpexp.calibrate", description=__doc__).parse_args()
    terminal.show_line(environment.describe().machine)
    failed = 0
    try:
        with signals.raised(), exclusive(terminal.show_waiting):
            for check in checks():
                terminal.show_line(f"{'ok    ' if check.passed else 'FAILED'} {check.text}")
                failed += not check.passed
    except DpexpError as error:
        terminal.show_error(str(error))
        return 1
    except signals.Interrupted as stop:
        return stop.status
    terminal.show_line(
        f"{failed} of the checks failed: do not trust measurements on this machine now"
        if failed
        else "all checks passed"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
