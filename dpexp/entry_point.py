"""Shared by all commands: parse arguments, report errors on one line, return an exit status."""

import argparse
import contextlib
import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from rich.console import Console

from dpexp.errors import FAILED, ConfigError, DpexpError
from dpexp.machine import signals
from dpexp.machine.measurement_lock import measurement_lock


class Parser(argparse.ArgumentParser):
    """Explains a mistake in one line, like all other errors."""

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError instead of printing the usage and exiting."""
        raise ConfigError(f"{message}; --help lists the options")


def entry_point(body: Callable[[list[str]], int]) -> Callable[..., int]:
    """Return the `main(arguments)` of a command (default: those of this process), which returns the exit status.

    While it runs, Ctrl-C and SIGTERM raise signals.Interrupted; callers may add to its text.
    """

    @functools.wraps(body)
    def main(arguments: Sequence[str] | None = None) -> int:
        try:
            with signals.raise_interrupts():
                return body(list(sys.argv[1:] if arguments is None else arguments))
        except DpexpError as error:
            if os.environ.get("HYDRA_FULL_ERROR") == "1":
                raise
            show_error(str(error))
            return error.exit_status
        except signals.Interrupted as stop:
            show_error(f"interrupted by {stop}")
            return stop.status
        except SystemExit as stop:  # by --help and --version
            return stop.code if isinstance(stop.code, int) else FAILED if stop.code else 0
        except BrokenPipeError:  # the reader of the output is gone; the results are on disk
            sys.stdout = None  # else Python would fail to flush it at exit
            return FAILED

    return main


def hold_measurement_lock() -> contextlib.AbstractContextManager[None]:
    """Hold the machine-wide measurement lock while the context is open; print a message while waiting for it."""
    return measurement_lock(_show_waiting)


def open_console(stderr: bool = False) -> Console:
    """Return a console without markup, since paths and messages of users' code may look like it."""
    stream = sys.stderr if stderr else sys.stdout
    if hasattr(stream, "reconfigure"):  # don't fail on characters that the encoding lacks
        stream.reconfigure(errors="replace")
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=stderr)


def show_error(message: str) -> None:
    """Print one line on standard error."""
    open_console(stderr=True).print(f"dpexp: {message}", style="red")


def show_line(text: str) -> None:
    """Print one line on standard output."""
    open_console().print(text, soft_wrap=True)


def _show_waiting(process: int) -> None:
    """Print on standard error that another dpexp is measuring on this machine."""
    holder = f"process {process}" if process else "a process in another container"
    text = f"waiting until {holder} has finished measuring: two simultaneous measurements would distort each other"
    open_console(stderr=True).print(f"dpexp: {text}")
