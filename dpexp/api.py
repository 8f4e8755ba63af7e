"""dpexp in a notebook or a program of yours: measure, load, draw. No `__main__` guard is needed."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dpexp.analysis.row import Row
from dpexp.analysis.table import Summary, aggregate
from dpexp.cli import resume, runner
from dpexp.config.compose import compose
from dpexp.config.experiment import ExperimentConfig
from dpexp.errors import ConfigError
from dpexp.machine.environment import describe
from dpexp.machine.exclusive import exclusive
from dpexp.measurement.user_files import fingerprint
from dpexp.processes import fork_server
from dpexp.report import terminal
from dpexp.report.writer import write_report

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from dpexp.report.figures import FigureName


def run(*overrides: str, folder: str | Path | None = None) -> Row:
    """Measure one configuration, as `python -m dpexp` does with these overrides; its row of the table.

    `folder` is where results go, by default below `outputs/runs`. Raises DpexpError.
    """
    return _measured(overrides, folder, multirun=False).rows[0]


def sweep(*overrides: str, folder: str | Path | None = None) -> pd.DataFrame:
    """Measure several configurations, as `python -m dpexp -m` does with these overrides; the table of `results.csv`.

    A job that fails is a row with its status. `folder` is where results and the report go, by default below
    `outputs/sweeps`. Raises DpexpError.
    """
    return _measured(overrides, folder, multirun=True).table


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


def _refuse_changed_modules(config: ExperimentConfig, files: dict[str, str]) -> None:
    """Raise ConfigError for a model whose file was edited: this process would go on with what it has imported."""
    for name, digest in files.items():
        if name not in {"data.path", *config.script_words} and _imported.setdefault(name, digest) != digest:
            raise ConfigError(f"{name} has changed since this Python process imported it; restart it, or the notebook")


def _measured(overrides: tuple[str, ...], folder: str | Path | None, multirun: bool) -> Summary:
    plan = compose(overrides, multirun)
    if plan.sweep and not multirun:
        raise ConfigError(f"{' '.join(overrides)}: it is a sweep; call dpexp.sweep")
    place = Path(folder) if folder is not None else plan.folder
    plan = replace(plan, folder=place)
    for job in plan.jobs:
        with runner.named(plan, job):
            runner.check(job.config)
    files = [fingerprint(job.config) for job in plan.jobs]
    for job, own in zip(plan.jobs, files, strict=True):
        _refuse_changed_modules(job.config, own)
    with contextlib.closing(runner.claim(place)), exclusive(terminal.show_waiting):
        resume.keep(plan)
        none = [None] * len(plan.jobs)
        done = list(runner.measured(plan, files, none, describe(), imports=fork_server.SOMETIMES))
        summary = write_report([place], place).summary if multirun else aggregate([place])
    runner.track(plan, summary, done)
    return summary
