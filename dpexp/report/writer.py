"""Write the report of some folders: the table as CSV, the figures, and a self-contained HTML page."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from dpexp.analysis.table import Summary, aggregate
from dpexp.analysis.table_row import largest_of_each_series
from dpexp.errors import ResultError
from dpexp.machine.files import write_atomically
from dpexp.report import figures
from dpexp.report.answer import sections
from dpexp.report.columns import cells, columns_of, footnotes
from dpexp.report.figures import FigureFile
from dpexp.report.sentences import label, workers_of

MAX_ROWS = 1000
MAX_DESCRIBED = 12  # rows, in a picture's alternative text


@dataclass(frozen=True)
class Report:
    """The files of a report, and their summary."""

    summary: Summary
    csv: Path
    page: Path
    figures: list[FigureFile]

    @property
    def paths(self) -> list[Path]:
        """The files and folders to show to the user."""
        return [self.csv, self.page, *([self.figures[0].path.parent] if self.figures else [])]


def write_report(folders: Sequence[Path], output: Path) -> Report:
    """Aggregate `folders` into `output`; the same results give the same files. Raises ResultError."""
    summary = aggregate(folders)
    try:
        output.mkdir(parents=True, exist_ok=True)
        drawn = figures.draw(summary, output / "figures")
        csv_path, page_path = output / "results.csv", output / "report.html"
        write_atomically(csv_path, summary.table.to_csv(index=False, float_format="%.6g"))
        write_atomically(page_path, _page(summary, drawn))
    except OSError as error:
        raise ResultError(f"can't write into {output}: {error.strerror}") from error
    return Report(summary, csv_path, page_path, drawn)


def _page(summary: Summary, drawn: Sequence[FigureFile]) -> str:
    """Return the HTML page: answer, figures in their order, and table."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dpexp.report", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    common, columns = columns_of(summary)
    rows = list(zip(*columns.values(), strict=True))
    sentences = sections(summary)
    for lines in sentences.values():  # no line breaks before a percent sign
        lines[:] = [line.replace(" %", "\N{NO-BREAK SPACE}%") for line in lines]
    headline, *answer = sentences.pop("answer") or ["No usable result"]
    return environment.get_template("page.html.j2").render(
        common=common,
        machine=summary.machine,
        headline=headline,
        answer=answer,
        **sentences,
        heads=list(columns),
        footnotes=footnotes(summary, list(columns)),
        rows=rows[:MAX_ROWS],
        more_rows=max(0, len(rows) - MAX_ROWS),
        figures=[_picture(summary, figure) for figure in drawn],
    )


def _picture(summary: Summary, figure: FigureFile) -> dict[str, str]:
    """Return a figure, with its numbers as alternative text."""
    rows = [row for row in summary.good if figure.path.stem == f"time_{row.data_size}"]
    numbered = []
    for row in rows or largest_of_each_series(summary.good):
        text = cells(row)
        numbers = f"speedup {text['speedup']}, efficiency {text['efficiency']}, {text['seconds']} s"
        numbered.append(f"{label(row)}{workers_of(row)}, {text['samples']} samples: {numbers}")
    return {
        "name": figure.path.stem,
        "title": figure.title,
        "alternative": f"{figure.title}. {'; '.join(numbered[:MAX_DESCRIBED])}",
        "svg": base64.b64encode(figure.path.with_suffix(".svg").read_bytes()).decode(),
    }
