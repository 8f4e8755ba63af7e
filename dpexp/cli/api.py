"""dpexp for notebooks and programs: measure, load, draw. No `__main__` guard is needed."""

from dataclasses import replace
from pathlib import Path

import pandas as pd

from dpexp.analysis.table import Summary, aggregate
from dpexp.analysis.table_row import Row
from dpexp.cli import runner
from dpexp.config.compose import compose
from dpexp.config.overrides import with_script
from dpexp.errors import ConfigError
from dpexp.processes import fork_server
from dpexp.report.writer import write_report


def run(*overrides: str, folder: str | Path | None = None) -> Row:
    """Measure one configuration, as `python -m dpexp` does with these overrides; return its row of the table.

    `folder` is where results go, by default below `outputs/runs`. Raises DpexpError.
    """
    return _measure(overrides, folder, multirun=False).rows[0]


def sweep(*overrides: str, folder: str | Path | None = None) -> pd.DataFrame:
    """Measure several configurations, as `python -m dpexp -m` does; return the table of `results.csv`.

    A job that fails is a row with its status. `folder` is where results and the report go, by default below
    `outputs/sweeps`. Raises DpexpError.
    """
    return _measure(overrides, folder, multirun=True).table


def load(*folders: str | Path) -> pd.DataFrame:
    """Return the table of all results below these folders, with a row per configuration (see docs/results.md).

    Raises ResultError.
    """
    return aggregate([Path(folder) for folder in folders]).table


def _measure(overrides: tuple[str, ...], folder: str | Path | None, multirun: bool) -> Summary:
    plan = compose(with_script(overrides), multirun)
    if plan.sweep and not multirun:
        raise ConfigError(f"{' '.join(overrides)}: this is a sweep; call dpexp.sweep")
    if folder is not None:
        plan = replace(plan, folder=Path(folder))
    fork_server.start_server()  # with the imports of all strategies and models: later calls may use others
    with runner.open_plan(plan) as jobs:
        list(jobs)
        return write_report([plan.folder], plan.folder)[0] if multirun else aggregate([plan.folder])
