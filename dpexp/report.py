"""Aggregate folders of results: the table as CSV, the figures, and one HTML page.

`python -m dpexp.report FOLDER... [--output FOLDER]` does it again at any time; it only reads results.
"""

from __future__ import annotations

import argparse
import base64
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from dpexp import figures, terminal
from dpexp.aggregate import Summary, aggregate
from dpexp.errors import DpexpError, ResultError
from dpexp.files import write_atomically
from dpexp.tables import advice, answers, columns_of, failures, first, reasons, targets

MOST_ROWS = 1000  # on the page


@dataclass(frozen=True)
class Written:
    """What an aggregation wrote, and the summary it wrote it from."""

    summary: Summary
    csv: Path
    page: Path
    figures: list[Path]

    @property
    def paths(self) -> list[Path]:
        """What to point a person to."""
        return [self.csv, self.page, *([self.figures[0].parent] if self.figures else [])]


def write_report(folders: Sequence[Path], output: Path) -> Written:
    """Aggregate `folders` into `output`; the same results give the same files. Raises ResultError."""
    summary = aggregate(folders)
    try:
        output.mkdir(parents=True, exist_ok=True)
        drawn = figures.draw(summary, output / "figures")
        csv, page = output / "results.csv", output / "report.html"
        write_atomically(csv, summary.table.to_csv(index=False, float_format="%.6g"))
        write_atomically(page, _page(summary, drawn))
    except OSError as error:
        raise ResultError(f"can't write into {output}: {error.strerror}") from error
    return Written(summary, csv, page, drawn)


def _page(summary: Summary, drawn: list[Path]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dpexp", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    common, columns = columns_of(summary)
    rows = list(zip(*columns.values(), strict=True))
    order = ("speedup_by_workers", "speedup", "efficiency", "phases", "time")
    drawn = sorted(drawn, key=lambda path: order.index(path.stem) if path.stem in order else len(order))
    pictures = [
        {"name": path.stem, "svg": base64.b64encode(path.with_suffix(".svg").read_bytes()).decode()} for path in drawn
    ]
    return environment.get_template("report.html.j2").render(
        common=common,
        machine=summary.machine,
        answers=first([*answers(summary), *targets(summary)]),
        reasons=first(reasons(summary)),
        advice=first(advice(summary)),
        heads=list(columns),
        rows=rows[:MOST_ROWS],
        more_rows=max(0, len(rows) - MOST_ROWS),
        failures=first(failures(summary)),
        figures=pictures,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line of this module; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m dpexp.report", description="Aggregate the results that lie below folders, again."
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="searched for result.json")
    parser.add_argument("--output", type=Path, help="where to write (default: FOLDER, which must then be one)")
    options = parser.parse_args(arguments)
    if options.output is None and len(options.folders) > 1:
        parser.error("several folders: say with --output where the common report goes")
    try:
        written = write_report(options.folders, options.output or options.folders[0])
    except DpexpError as error:
        terminal.show_error(str(error))
        return 1
    terminal.show_report(written.summary, written.paths)
    return 0


if __name__ == "__main__":
    sys.exit(main())
