"""dpexp in a notebook or a program of yours: measure, load, draw. No `__main__` guard is needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dpexp.analysis.row import Row
from dpexp.analysis.table import Summary, aggregate
from dpexp.config.arguments import parse
from dpexp.config.compose import compose_planned
from dpexp.config.experiment import ExperimentConfig
from dpexp.errors import ConfigError
from dpexp.measurement.user_files import fingerprint
from dpexp.processes import fork_server
from dpexp.report.writer import write_report
from dpexp.results.command import planned
from dpexp.session import Session

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from dpexp.report.figures import FigureName


def run(*overrides: str, folder: str | Path | None = None) -> Row:
    """Measure one configuration, as `python -m dpexp` does with these overrides; its row of the table.

    `folder` is where results go, by default below `outputs/runs`. Raises DpexpError.
    """
    return _measured(overrides, folder, sweep=False).rows[0]


def sweep(*overrides: str, folder: str | Path | None = None) -> pd.DataFrame:
    """Measure several configurations, as `python -m dpexp -m` does with these overrides; the table of `results.csv`.

    A job that fails is a row with its status. `folder` is where results and the report go, by default below
    `outputs/sweeps`. Raises DpexpError.
    """
    return _measured(overrides, folder, sweep=True).table


def load(*folders: str | Path) -> pd.DataFrame:
    """The table of all results below these folders, a row a configuration; docs/results.md explains the columns.

    Raises ResultError.
    """
    return aggregate([Path(folder) for folder in folders]).table


def plot(table: pd.DataFrame, name: FigureName = "speedup_by_workers", axes: Axes | None = None) -> Axes:
    """Draw one of the report's figures of one series into `axes` (None: new ones), and return them.

    Raises ValueError for a table of several series: choose one by `table[table.series == ...]`.
    """
    from dpexp.report.figures import paint

    return paint(table, name, axes)


_imported: dict[str, str] = {}  # SHA-256 of the user's modules, as this process has imported them


def _refuse_changed_modules(config: ExperimentConfig) -> None:
    """Raise ConfigError for a model whose file was edited: this process would go on with what it has imported."""
    for name, digest in fingerprint(config).items():
        if name not in {"data.path", *config.script_words} and _imported.setdefault(name, digest) != digest:
            raise ConfigError(f"{name} has changed since this Python process imported it; restart it, or the notebook")


def _measured(overrides: tuple[str, ...], folder: str | Path | None, sweep: bool) -> Summary:
    request = parse(overrides)
    default, jobs = compose_planned(request.overrides, sweep)
    place = Path(folder) if folder is not None else default
    session = Session(request, None, fork_server.SOMETIMES)
    try:
        for _, _, config in jobs:
            session.check(config)
            _refuse_changed_modules(config)
        session.begin(planned(request.overrides, jobs, sweep), place)
        session.run_planned()
    finally:
        session.end(0)
    summary = write_report([place], place).summary if sweep else aggregate([place])
    session.track(summary)
    return summary
