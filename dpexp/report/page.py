"""The page: answer, figures and table in one HTML file that needs no other."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import jinja2

from dpexp.analysis.table import Summary
from dpexp.report import sentences
from dpexp.report.columns import columns_of, footnotes
from dpexp.report.figures import Drawn

MOST_ROWS = 1000


def render(summary: Summary, figures: Sequence[Drawn]) -> str:
    """The HTML, with the figures in their order. Raises OSError."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dpexp.report", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    common, columns = columns_of(summary)
    rows = list(zip(*columns.values(), strict=True))

    pictures = [
        {
            "name": figure.path.stem,
            "title": figure.title,
            "alternative": f"{figure.title}. {sentences.finding(summary, figure.path.stem)}",
            "svg": base64.b64encode(figure.path.with_suffix(".svg").read_bytes()).decode(),
        }
        for figure in figures
    ]
    return environment.get_template("page.html.j2").render(
        common=common,
        machine=summary.machine,
        headline=(_lines(sentences.answer(summary)) or ["No usable result"])[0],
        answer=_lines(sentences.answer(summary))[1:],
        details=_lines([*sentences.details(summary), *sentences.targets(summary)]),
        reasons=_lines(sentences.reasons(summary)),
        warnings=_lines(sentences.warnings(summary)),
        failures=_lines(sentences.failures(summary)),
        heads=list(columns),
        footnotes=footnotes(summary, list(columns)),
        rows=rows[:MOST_ROWS],
        more_rows=max(0, len(rows) - MOST_ROWS),
        figures=pictures,
    )


def _lines(lines: list[str]) -> list[str]:
    """The first lines; no line of the page breaks before a percent sign."""
    return [line.replace(" %", "\N{NO-BREAK SPACE}%") for line in sentences.first(lines)]
