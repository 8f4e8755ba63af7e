"""Write the report of some folders: the table as CSV, the figures, and one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dpexp.analysis.table import Summary, aggregate
from dpexp.errors import ResultError
from dpexp.machine.files import write_atomically
from dpexp.report import figures, page
from dpexp.report.figures import Drawn


@dataclass(frozen=True)
class Written:
    """The files of a report, and the summary that they show."""

    summary: Summary
    csv: Path
    page: Path
    figures: list[Drawn]

    @property
    def paths(self) -> list[Path]:
        """The files and folders to name to the user."""
        return [self.csv, self.page, *([self.figures[0].path.parent] if self.figures else [])]


def write_report(folders: Sequence[Path], output: Path) -> Written:
    """Aggregate `folders` into `output`; the same results give the same files. Raises ResultError."""
    summary = aggregate(folders)
    try:
        output.mkdir(parents=True, exist_ok=True)
        drawn = figures.draw(summary, output / "figures")
        csv_path, page_path = output / "results.csv", output / "report.html"
        write_atomically(csv_path, summary.table.to_csv(index=False, float_format="%.6g"))
        write_atomically(page_path, page.render(summary, drawn))
    except OSError as error:
        raise ResultError(f"can't write into {output}: {error.strerror}") from error
    return Written(summary, csv_path, page_path, drawn)
