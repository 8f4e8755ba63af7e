"""Aggregate the results that lie below folders: `python -m dpexp.report FOLDER... [--output FOLDER]`."""

import sys
from pathlib import Path

from dpexp.entry_point import Parser, entry_point
from dpexp.errors import ConfigError
from dpexp.report import terminal
from dpexp.report.writer import write_report


@entry_point
def main(arguments: list[str]) -> int:
    """Run this command; return the exit status."""
    parser = Parser(
        prog="python -m dpexp.report", description="Write table, figures and page of the results below some folders."
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="searched for result.json files")
    parser.add_argument("--output", type=Path, help="the folder to write into (default: FOLDER, if only one is given)")
    options = parser.parse_args(arguments)
    if options.output is None and len(options.folders) > 1:
        raise ConfigError("several folders need --output: a folder for their common report")
    summary, paths = write_report(options.folders, options.output or options.folders[0])
    terminal.show_report(summary, paths)
    return 0


if __name__ == "__main__":
    sys.exit(main())
