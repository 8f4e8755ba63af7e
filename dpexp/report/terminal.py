"""Output to the terminal: progress while jobs run, and the report."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from dpexp.entry_point import open_console, show_line
from dpexp.errors import ResultError

if TYPE_CHECKING:
    from dpexp.analysis.table import Summary

WIDTH_WITHOUT_TERMINAL = 200
REDRAW_SECONDS = 1.0  # redrawing takes time from the workers
PROGRESS_LINE_SECONDS = 15.0  # interval of progress lines without a terminal

STYLES = {"details": "", "reasons": "dim", "warnings": "yellow", "failures": "red"}
# Columns that a narrow terminal leaves out, in this order; results.csv has all columns.
OPTIONAL_COLUMNS = (
    "samples/s, batch, updates, seconds, accuracy, efficiency, overall speedup, over best sequential"
).split(", ")


def show_report(summary: Summary, paths: Sequence[Path]) -> None:
    """Print the answer, the table, and the files that were written, on standard output.

    Raises ResultError when standard output can't be written, and BrokenPipeError when its reader is gone.
    """
    from dpexp.report.answer import sections  # pandas is slow to import: errors shouldn't wait for it

    console, sentences = open_console(), sections(summary)
    try:
        if not console.is_terminal and "COLUMNS" not in os.environ:
            console.width = WIDTH_WITHOUT_TERMINAL
        for number, line in enumerate(sentences["answer"]):
            console.print(line, soft_wrap=True, style="" if number else "bold")
        console.print()
        _show_table(console, summary)
        for section, style in STYLES.items():
            for line in sentences[section]:
                console.print(f"warning: {line}" if section == "warnings" else line, soft_wrap=True, style=style)
        for path in paths:
            console.print(f"wrote {path}", soft_wrap=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ResultError(f"can't print: {error.strerror}") from error


def _show_table(console: Console, summary: Summary) -> None:
    from dpexp.report.text_table import columns_of, footnotes

    common, columns = columns_of(summary)
    if common:
        console.print(common, style="bold", soft_wrap=True)
    if not columns:
        return
    for head in OPTIONAL_COLUMNS:
        if sum(3 + max(map(len, (name, *cells))) for name, cells in columns.items()) > console.width:
            columns.pop(head, None)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for head in columns:
        textual = head == "configuration"
        table.add_column(head, justify="left" if textual else "right", no_wrap=not textual)
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    console.print(table)
    for note in footnotes(summary, list(columns)):
        console.print(note, soft_wrap=True)
    console.print()


class Display:
    """One progress bar for all jobs of a command, on standard error.

    Without a terminal, it prints lines on standard output: for each finished job of a sweep, and every 15 s.
    """

    def __init__(self, jobs: int = 1) -> None:
        self._jobs = jobs
        self._job, self._name = 0, ""
        self._job_started = self._drawn = time.monotonic()
        self._console = open_console(stderr=True)
        self._bar = Progress(
            BarColumn(20),
            TextColumn("{task.percentage:3.0f} %"),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),  # last, because its width changes
            console=self._console,
            auto_refresh=False,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=1.0)

    def begin(self, job: int, name: str) -> None:
        """Begin job `job` (from 0); `name` distinguishes it from the others."""
        self._job, self._name, self._job_started = job, name or "defaults", time.monotonic()
        self._bar.start()
        self._redraw("loading", 0.0)

    def update(self, text: str, done_fraction: float) -> None:
        """Show the progress of the current job."""
        silent = time.monotonic() - self._drawn
        if self._bar.disable and silent >= PROGRESS_LINE_SECONDS:
            self._drawn = time.monotonic()
            self._tell(f"{100 * done_fraction:.0f} %, {text}")
        elif not self._bar.disable and silent >= REDRAW_SECONDS:
            self._redraw(text, done_fraction)

    def finish(self, outcome: str) -> None:
        """End the current job."""
        if not self._console.is_terminal and self._jobs > 1:
            self._tell(f"{outcome}, {time.monotonic() - self._job_started:.1f} s")

    def close(self) -> None:
        """Remove the bar."""
        self._bar.stop()

    def _job_prefix(self) -> str:
        return f"job {self._job + 1} of {self._jobs}: " if self._jobs > 1 else ""

    def _tell(self, text: str) -> None:
        with contextlib.suppress(OSError):  # an output that is gone is no reason to end a job
            show_line(f"{self._job_prefix()}{self._name}: {text}" if self._jobs > 1 else text)

    def _redraw(self, text: str, job_fraction: float) -> None:
        self._drawn = time.monotonic()
        done = min(1.0, (self._job + job_fraction) / self._jobs)
        with contextlib.suppress(OSError):
            self._bar.update(self._task, completed=done, description=self._job_prefix() + text, refresh=True)
