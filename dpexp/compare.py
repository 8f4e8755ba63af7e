"""Did my change help? Compare two folders of results, or measure two commands in turns.

As in `python -m dpexp.compare 'strategy=ddp workers=2' 'strategy=sync_dp workers=2'`.
"""

import argparse
import contextlib
import os
import re
import shlex
import sys
import tempfile
from collections import Counter
from pathlib import Path

from dpexp.analysis.decision.changes import FASTER, LIKE_BASELINE, SLOWER, Cell, compare_folders, differences
from dpexp.analysis.ratios import compare
from dpexp.cli import runner
from dpexp.config.compose import compose_job, with_script
from dpexp.config.job import JobConfig, flatten
from dpexp.errors import ConfigError, counted
from dpexp.report import terminal
from dpexp.report.command import Parser, command, measuring_alone

TOO_SLOW = 3  # the exit status of --fail-if-slower
SHARED = ("model", "data", "seed", "dtype", "measurement", "launch")  # of both commands


@command
def main(arguments: list[str]) -> int:
    """Print how the time of a training changes; return the exit status."""
    parser = Parser(prog="python -m dpexp.compare", description=__doc__)
    text = "a folder of results, or a command's key=value settings in quotes"
    parser.add_argument("before", help=text)
    parser.add_argument("after", help="the same, after the change")
    parser.add_argument(
        "--fail-if-slower", metavar="5%", type=_share, help=f"exit with status {TOO_SLOW} if AFTER is slower by more"
    )
    options = parser.parse_args(arguments)
    folders = [os.path.isdir(text) for text in (options.before, options.after)]  # noqa: PTH112 - of any text
    if any(folders) and not all(folders):
        raise ConfigError(f"{(options.before, options.after)[folders.index(False)]}: no such folder")
    show = _show_folders if all(folders) else _show_commands
    slower = show(options.before, options.after, options.fail_if_slower or 0.0)
    return TOO_SLOW if slower and options.fail_if_slower is not None else 0


def _share(text: str) -> float:
    if not re.fullmatch(r"\d+(\.\d+)?%", text):
        raise argparse.ArgumentTypeError(f"{text}: write a share, such as 5%")
    return float(text.removesuffix("%")) / 100


def _show_folders(before: str, after: str, share: float) -> bool:
    """Show the changes between two folders; return whether any cell is, or may be, slower by more than `share`."""
    changes = compare_folders(Path(before), Path(after))
    for cell in changes.cells:
        _show(cell)
    if changes.others:
        terminal.show_line(f"not compared: {counted(changes.others, 'configuration')} that only one folder has")
    for name in changes.failed:
        terminal.show_line(f"warning: {name} has no good result")
    cells = counted(len(changes.cells), "cell")
    verdicts = Counter(cell.verdict for cell in changes.cells)
    if drifted := verdicts[LIKE_BASELINE]:
        terminal.show_line(
            f"warning: in {drifted} of {cells} the sequential baseline changed, too: by "
            "your change, or because the machine's speed changed; measure both commands in turns to find out"
        )
    terminal.show_line(f"{verdicts[SLOWER]} of {cells} slower, {verdicts[FASTER]} faster")
    return changes.is_slower(share)


def _show_commands(before: str, after: str, share: float) -> bool:
    """Measure two commands in turns; return whether the second is slower by more than `share`.

    Blocks are added until that is known to `measurement.precision` of the first, or its time is over.
    """
    first, second = _composed(before), _composed(after)
    _refuse_other_work(first, second)
    from dpexp.measurement.job import measure_in_turns  # imports torch: mistakes don't wait for it

    with (
        measuring_alone(),
        tempfile.TemporaryDirectory() as folder,
        contextlib.closing(terminal.Display()) as display,
    ):
        display.begin(0, "")
        configs = {"before": first, "after": second}
        blocks = measure_in_turns(configs, Path(folder), on_progress=display.update)
    comparison = compare([blocks], over="after", of="before")
    cell = Cell(after, comparison.shown, None)
    _show(cell)
    if comparison.undisturbed is not None:
        terminal.show_line(
            f"other programs or virtual machines slowed down {100 * comparison.disturbed_share:.0f} % of the steps, "
            f"which don't count; with all time counted: {comparison.overall:.3f} times"
        )
    return cell.takes_longer(share)


def _composed(text: str) -> JobConfig:
    """Return the job of a command's settings. Raises ConfigError."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"{text}: {error}") from error
    if any("=" not in word for word in words):
        raise ConfigError(f"{text}: it is neither a folder nor settings such as 'strategy=ddp workers=2'")
    config = compose_job(*with_script(words))
    runner.check(config)
    return config


def _refuse_other_work(first: JobConfig, second: JobConfig) -> None:
    """Raise ConfigError if the two commands can't take turns, or do different work."""
    first_settings, second_settings = (
        {name: value for name, value in flatten(config.settings).items() if name.split(".")[0] in SHARED}
        for config in (first, second)
    )
    if differing := differences(first_settings, second_settings):
        raise ConfigError(
            f"{differing}: both commands must train the same model on the same data with the same measurement"
        )
    visited = [config.epochs * config.train_samples for config in (first, second)]
    if visited[0] != visited[1]:
        raise ConfigError(f"{visited[0]:,} samples against {visited[1]:,}: both commands must train on the same number")


def _show(cell: Cell) -> None:
    terminal.show_line(f"{cell.name}: {cell.change:.3f} times the time, {cell.verdict}")


if __name__ == "__main__":
    sys.exit(main())
