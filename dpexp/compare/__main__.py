"""Did my change help? `python -m dpexp.compare BEFORE AFTER`, of two folders of results or of two commands."""

from __future__ import annotations

import argparse
import math
import os
import shlex
import sys
import tempfile
from pathlib import Path

from dpexp.cli import runner
from dpexp.cli.boundary import Parser, command
from dpexp.compare.cells import Cell, compare_folders
from dpexp.config.compose import compose_job, with_script
from dpexp.errors import ConfigError, counted
from dpexp.machine.exclusive import exclusive
from dpexp.report import terminal

SLOWER = 3  # the exit status of --fail-if-slower


@command
def main(arguments: list[str]) -> int:
    """Print how the time of a training changes; return the exit status."""
    parser = Parser(
        prog="python -m dpexp.compare",
        description="Compare two folders of results, or measure two commands in turns.",
        epilog="example: python -m dpexp.compare 'strategy=ddp workers=2' 'strategy=sync_dp workers=2'",
    )
    what = "a folder of results, or a command's key=value settings in quotes"
    parser.add_argument("before", help=what)
    parser.add_argument("after", help="the same, after the change")
    parser.add_argument(
        "--fail-if-slower", metavar="5%", type=_share, help=f"exit with status {SLOWER} if AFTER is slower by more"
    )
    options = parser.parse_args(arguments)
    folders = [os.path.isdir(text) for text in (options.before, options.after)]  # noqa: PTH112 - of any text
    if any(folders) and not all(folders):
        raise ConfigError(f"{(options.before, options.after)[folders.index(False)]}: no such folder")
    show = _show_folders if all(folders) else _show_commands
    slower = show(options.before, options.after, options.fail_if_slower or 0.0)
    return SLOWER if slower and options.fail_if_slower is not None else 0


def _share(text: str) -> float:
    number = text.removesuffix("%")
    try:
        share = float(number) / (100 if number != text else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share < 10:
        raise argparse.ArgumentTypeError(f"{text}: write a share, such as 5%")
    return share


def _show_folders(before: str, after: str, share: float) -> bool:
    """Whether any cell is slower by more than `share`, or may be."""
    found = compare_folders(Path(before), Path(after))
    for cell in found.cells:
        terminal.show_line(_sentence(cell))
    if found.others:
        terminal.show_line(f"{counted(found.others, 'configuration')} in one of the folders only: not compared")
    for name in found.failed:
        terminal.show_line(f"warning: {name} has no good result")
    drifted = sum(cell.is_drifted for cell in found.cells)
    if drifted:
        terminal.show_line(
            f"warning: in {drifted} of {counted(len(found.cells), 'cell')} the sequential baseline changed alike: by "
            "the change, or because the machine's speed did; to tell, measure both commands in turns"
        )
    slower, faster = sum(cell.is_slower for cell in found.cells), sum(cell.is_faster for cell in found.cells)
    terminal.show_line(f"{slower} of {counted(len(found.cells), 'cell')} slower, {faster} faster")
    return found.is_slower(share)


def _show_commands(before: str, after: str, share: float) -> bool:
    """Whether the second command is slower by more than `share`."""
    first, second = (compose_job(*_overrides(text)) for text in (before, after))
    for config in (first, second):
        runner.check(config)
    from dpexp.compare.commands import compare_commands  # imports torch

    display = terminal.Display()
    display.begin(0, "")
    try:
        with exclusive(terminal.show_waiting), tempfile.TemporaryDirectory() as folder:
            found = compare_commands(first, second, Path(folder), display.update)
    finally:
        display.close()
    cell = Cell(after, found.shown, None)
    terminal.show_line(_sentence(cell))
    if found.undisturbed is not None:
        here = found.here
        terminal.show_line(
            f"others slowed down {100 * found.disturbed_share:.0f} % of the steps, which don't count; "
            f"as it is here, with all time counted: {here.value:.3f} times ({here.low:.3f} to {here.high:.3f})"
        )
    return cell.takes_longer(share)


def _overrides(text: str) -> list[str]:
    """The settings of a command. Raises ConfigError."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"{text}: {error}") from error
    if any("=" not in word for word in words):
        raise ConfigError(f"{text}: neither a folder nor settings such as 'strategy=ddp workers=2'")
    return with_script(words)


def _sentence(cell: Cell) -> str:
    change = cell.change
    if math.isnan(change.low):
        return f"{cell.name}: {change.value:.3f} times the time; one block gives no interval"
    if cell.is_slower:
        verdict = "slower"
    elif cell.is_faster:
        verdict = "faster"
    elif cell.is_drifted:
        verdict = "like its baseline"
    else:
        verdict = "no difference shown"
    return f"{cell.name}: {change.value:.3f} times the time ({change.low:.3f} to {change.high:.3f}), {verdict}"


if __name__ == "__main__":
    sys.exit(main())
