"""What a person sees in the terminal: progress while jobs run, a closing table, one-line errors."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table

from dpexp.errors import ResultError
from dpexp.progress import Progress

if TYPE_CHECKING:
    from dpexp.aggregate import Summary


MOST_ROWS = 100
_quiet = {"errors": False, "rest": False}


def silence(errors: bool) -> None:
    """Show nothing more in this process, not even errors if so asked: another one speaks for it."""
    _quiet.update(errors=errors, rest=True)


def _console(stderr: bool = False, kind: str = "rest") -> Console:
    """A console that shows text as it is: a path or a message of a user's code is no markup."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=stderr, quiet=_quiet[kind])


def show_error(message: str) -> None:
    """One line on standard error."""
    _console(stderr=True, kind="errors").print(f"dpexp: {message}", style="red")


def show_line(text: str) -> None:
    """One line on standard output."""
    _console().print(text, soft_wrap=True)


def show_report(summary: Summary, paths: Sequence[Path]) -> None:
    """The closing table, the answer in words, and where things were written, on standard output.

    Raises ResultError when standard output takes no more, and BrokenPipeError when nobody reads it.
    """
    try:
        _show_report(summary, paths)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ResultError(f"can't print: {error.strerror}") from error


def _show_report(summary: Summary, paths: Sequence[Path]) -> None:
    from dpexp.tables import (  # pandas is slow to import: errors don't wait for it
        advice,
        answers,
        columns_of,
        failures,
        first,
        reasons,
        targets,
    )

    console = _console()
    if not console.is_terminal:
        console.width = 200
    common, columns = columns_of(summary)
    if common:
        console.print(common, style="bold")
    for head in (
        "samples/s",
        "batch",
        "updates",
        "remarks",
        "over best",
    ):  # what a narrow terminal does without: results.csv has all
        if sum(3 + max(map(len, (name, *column))) for name, column in columns.items()) > console.width:
            columns.pop(head, None)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for head in columns:
        textual = head in ("configuration", "remarks")
        table.add_column(head, justify="left" if textual else "right", no_wrap=not textual)
    rows = list(zip(*columns.values(), strict=True))
    for row in rows[:MOST_ROWS]:
        table.add_row(*row)
    if columns:
        console.print(table)
        if len(rows) > MOST_ROWS:
            console.print(f"... and {len(rows) - MOST_ROWS:,} more rows: results.csv has all")
        if summary.table.oversubscribed.eq(True).any():
            console.print(f"* more threads than the {summary.usable_cores} usable cores")
        console.print(
            "speedup: over one sequential process with as many threads as a worker; over best: over the one with the "
            "best number of threads;\nin square brackets the baseline's; accuracy on the test split; intervals are "
            "95 %\n",
            soft_wrap=True,
        )
    for line in first([*answers(summary), *targets(summary)]):
        console.print(line, soft_wrap=True)
    for line in first(reasons(summary)):
        console.print(line, soft_wrap=True, style="dim")
    for line in first(advice(summary)):
        console.print(f"doubt: {line}", soft_wrap=True, style="yellow")
    for line in first(failures(summary)):
        console.print(line, soft_wrap=True, style="red")
    for path in paths:
        console.print(f"wrote {path}", soft_wrap=True)


class Display:
    """One progress bar for all jobs of a command; nothing at all when standard error is no terminal.

    It is redrawn between trainings, and within one at most once a second: redrawing takes time from the workers.
    """

    def __init__(self, work: Sequence[float]) -> None:
        self._work = work  # of each job, in any unit; empty where the jobs aren't known beforehand
        self._job = 0
        self._started = self._drawn = time.monotonic()
        console = _console(stderr=True)
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(30),
            TextColumn("{task.percentage:3.0f} %"),
            TextColumn("{task.fields[left]}"),
            console=console,
            auto_refresh=False,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=1.0, left="")

    def begin(self, job: int) -> None:
        """Job `job` (from 0) starts."""
        self._job = job
        self._bar.start()
        self._redraw("loading", 0.0)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.stop()

    def update(self, progress: Progress) -> None:
        """The current job has come this far."""
        if progress.epoch and time.monotonic() - self._drawn < 1:
            return
        self._redraw(
            f"block {progress.block} of {progress.blocks}, {progress.variant}, "
            f"epoch {min(progress.epoch + 1, progress.epochs)} of {progress.epochs}",
            progress.done_fraction,
        )

    def _redraw(self, text: str, job_fraction: float) -> None:
        self._drawn = time.monotonic()
        if self._job < len(self._work):
            done = (sum(self._work[: self._job]) + self._work[self._job] * job_fraction) / sum(self._work)
        else:
            done = job_fraction
        elapsed = time.monotonic() - self._started
        left = f"{_duration(elapsed * (1 - done) / done)} left" if done > 0.01 else ""
        jobs = f"job {self._job + 1} of {len(self._work)}, " if len(self._work) > 1 else ""
        with contextlib.suppress(OSError):  # a terminal that is gone is no reason to end a job
            self._bar.update(self._task, completed=done, description=jobs + text, left=left, refresh=True)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02d}"
