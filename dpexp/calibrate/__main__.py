"""`python -m dpexp.calibrate`: does dpexp measure correctly on this machine?"""

from __future__ import annotations

import sys

from dpexp.calibrate.checks import checks
from dpexp.cli.boundary import FAILED, Parser, command
from dpexp.machine import environment
from dpexp.machine.exclusive import exclusive
from dpexp.report import terminal


@command
def main(arguments: list[str]) -> int:
    """Print a line for each check; the exit status is 0 when all passed."""
    Parser(prog="python -m dpexp.calibrate", description=__doc__).parse_args(arguments)
    terminal.show_line(environment.describe().machine)
    failed = 0
    with exclusive(terminal.show_waiting):
        for check in checks():
            terminal.show_line(f"{'ok    ' if check.passed else 'FAILED'} {check.text}")
            failed += not check.passed
    terminal.show_line(
        f"{failed} of the checks failed: do not trust measurements on this machine now"
        if failed
        else "all checks passed"
    )
    return FAILED if failed else 0


if __name__ == "__main__":
    sys.exit(main())
