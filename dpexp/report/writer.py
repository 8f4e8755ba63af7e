"""Write the report of some folders: the table as CSV, the figures, and a self-contained HTML page."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2

from dpexp.analysis.table import Summary, aggregate
from dpexp.errors import ResultError
from dpexp.machine.files import write_atomically
from dpexp.report import figures
from dpexp.report.answer import sections
from dpexp.report.text_table import columns_of, footnotes


def write_report(folders: Sequence[Path], output: Path) -> tuple[Summary, list[Path]]:
    """Aggregate `folders` into `output`; the same results give the same files. Raises ResultError.

    Returns the summary, and the written table, page and folder of figures.
    """
    summary = aggregate(folders)
    table, page, pictures = output / "results.csv", output / "report.html", output / "figures"
    try:
        output.mkdir(parents=True, exist_ok=True)
        titles = figures.draw(summary, pictures)
        write_atomically(table, summary.table.to_csv(index=False, float_format="%.6g"))
        write_atomically(page, _page(summary, titles))
    except OSError as error:
        raise ResultError(f"can't write into {output}: {error.strerror}") from error
    return summary, [table, page, *([pictures] if titles else [])]


def _page(summary: Summary, titles: Mapping[Path, str]) -> str:
    """Return the HTML page: answer, figures in their order, and table."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dpexp.report", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    common, columns = columns_of(summary)
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
        rows=list(zip(*columns.values(), strict=True)),
        figures=[
            {"name": path.stem, "title": title, "svg": base64.b64encode(path.with_suffix(".svg").read_bytes()).decode()}
            for path, title in titles.items()
        ],
    )
