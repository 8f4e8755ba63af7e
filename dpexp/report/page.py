"""The page: answer, figures and table in one HTML file that needs no other."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

import jinja2

from dpexp.analysis.table import Summary
from dpexp.report import sentences
from dpexp.report.columns import columns_of, footnotes

MOST_ROWS = 1000
TITLES = {
    "speedup_by_workers": "Speedup against workers",
    "phases": "Where the workers' time goes",
    "efficiency": "Parallel efficiency",
    "speedup": "Speedup against training samples",
    "time": "Training time",
}


def render(summary: Summary, figures: Sequence[Path]) -> str:
    """The HTML; `figures` are the PNG files, beside each of which lies the SVG that is shown. Raises OSError."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dpexp.report", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    common, columns = columns_of(summary)
    rows = list(zip(*columns.values(), strict=True))

    order = list(TITLES)

    def place(path: Path) -> int:
        return order.index(path.stem) if path.stem in order else len(order)

    pictures = [
        {
            "title": _title(path.stem),
            "alternative": f"{_title(path.stem)}. {sentences.finding(summary, path.stem)}",
            "svg": base64.b64encode(path.with_suffix(".svg").read_bytes()).decode(),
        }
        for path in sorted(figures, key=place)
    ]
    return environment.get_template("page.html.j2").render(
        common=common,
        machine=summary.machine,
        answers=sentences.first([*sentences.answers(summary), *sentences.targets(summary)]),
        reasons=sentences.first(sentences.reasons(summary)),
        warnings=sentences.first(sentences.warnings(summary)),
        failures=sentences.first(sentences.failures(summary)),
        heads=list(columns),
        footnotes=footnotes(summary, list(columns)),
        rows=rows[:MOST_ROWS],
        more_rows=max(0, len(rows) - MOST_ROWS),
        figures=pictures,
    )


def _title(name: str) -> str:
    return TITLES.get(name) or f"Training time, {int(name.removeprefix('time_')):,} samples"
