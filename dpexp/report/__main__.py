"""Aggregate the results that lie below folders: `python -m dpexp.report FOLDER... [--output FOLDER]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dpexp.errors import DpexpError
from dpexp.report import terminal
from dpexp.report.writer import write_report


def main(arguments: Sequence[str] | None = None) -> int:
    """Run this command; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m dpexp.report", description="Write table, figures and page of the results below some folders."
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="searched for result.json")
    parser.add_argument("--output", type=Path, help="the folder to write into (default: FOLDER, if there is one)")
    options = parser.parse_args(arguments)
    if options.output is None and len(options.folders) > 1:
        parser.error("several folders need --output: the folder for their common report")
    try:
        written = write_report(options.folders, options.output or options.folders[0])
    except DpexpError as error:
        terminal.show_error(str(error))
        return 1
    terminal.show_report(written.summary, written.paths)
    return 0


if __name__ == "__main__":
    sys.exit(main())
