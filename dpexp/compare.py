"""Did my change help? Measure two commands in turns.

Example: `python -m dpexp.compare 'strategy=ddp workers=2' 'strategy=sync_dp workers=2'`.
"""

import argparse
import contextlib
import re
import shlex
import sys
import tempfile
from pathlib import Path

from dpexp.analysis.ratio_estimate import compare
from dpexp.config.compose import compose_config
from dpexp.config.job import JobConfig, check_core_limits, flatten
from dpexp.config.overrides import split_at_script, with_script
from dpexp.entry_point import Parser, entry_point, hold_measurement_lock, show_line
from dpexp.errors import ConfigError, pluralize
from dpexp.report import terminal

TOO_SLOW = 3  # the exit status of --fail-if-slower
MUST_AGREE = ("model", "data", "seed", "dtype", "measurement", "launch")  # settings that both commands must share


@entry_point
def main(arguments: list[str]) -> int:
    """Print how much faster or slower the second training is; return the exit status.

    Blocks are added until the ratio reaches `measurement.precision` or `measurement.max_seconds` is used up.
    """
    parser = Parser(prog="python -m dpexp.compare", description=__doc__)
    parser.add_argument("before", help="a command's settings, in quotes; for a script: 'workers=2 -- torchrun ...'")
    parser.add_argument("after", help="the same, after the change")
    slower = f"exit with status {TOO_SLOW} if AFTER takes more than this much longer, by the lower end of the interval"
    parser.add_argument("--fail-if-slower", metavar="5%", type=_parse_percent, help=slower)
    options = parser.parse_args(arguments)
    configs = {"before": _compose_job(options.before), "after": _compose_job(options.after)}
    _refuse_other_work(*configs.values())
    from dpexp.measurement.job import measure_in_turns  # imports torch: mistakes shouldn't wait for it

    with (
        hold_measurement_lock(),
        tempfile.TemporaryDirectory() as folder,
        contextlib.closing(terminal.Display()) as display,
    ):
        display.begin(0, "")
        blocks = measure_in_turns(
            configs, baseline="before", candidate="after", folder=Path(folder), on_progress=display.update
        )
    comparison = compare([blocks], baseline="after", candidate="before")  # = time after / before
    change = comparison.shown
    verdict = "slower" if change.low > 1 else "faster" if change.high < 1 else "no difference shown"
    show_line(f"{options.after}: takes {change:.3f} times as long ({verdict})")
    if comparison.undisturbed is not None:
        show_line(
            f"other programs or virtual machines slowed down {100 * comparison.disturbed_share:.0f} % of the steps, "
            f"and these don't count; with all time counted: {comparison.overall:.3f} times"
        )
    is_too_slow = options.fail_if_slower is not None and change.low > 1 + options.fail_if_slower
    return TOO_SLOW if is_too_slow else 0


def _parse_percent(text: str) -> float:
    if not re.fullmatch(r"\d+(\.\d+)?%", text):
        raise argparse.ArgumentTypeError(f"{text}: write a percentage, such as 5%")
    return float(text.removesuffix("%")) / 100


def _compose_job(text: str) -> JobConfig:
    """Return the job of a command's settings. Raises ConfigError."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"{text}: {error}") from error
    if any("=" not in word for word in split_at_script(words)[0]):
        raise ConfigError(
            f"{text}: write settings, such as 'strategy=ddp workers=2'; a script's command follows after --"
        )
    config = compose_config(*with_script(words))
    check_core_limits(config)
    return config


def _refuse_other_work(first: JobConfig, second: JobConfig) -> None:
    """Raise ConfigError if the two commands can't take turns, or do different work."""
    if type(first) is not type(second):
        raise ConfigError("a built-in training and a script can't be compared: give two of the same kind")
    settings, other_settings = (flatten(config.settings) for config in (first, second))
    names = [name for name in {**settings, **other_settings} if name.split(".")[0] in MUST_AGREE]
    both = [(name, settings.get(name, "none"), other_settings.get(name, "none")) for name in names]
    differing = [
        f"{name.removesuffix('.name')}={value} against {other}" for name, value, other in both if value != other
    ]
    if differing:
        raise ConfigError(
            f"{', '.join(differing[:3])}: both commands must train the same model on the same data with the same "
            "measurement"
        )
    before, after = ((config.epochs, config.train_samples) for config in (first, second))
    if before != after:
        texts = [
            f"{pluralize(epochs, 'epoch')} of {pluralize(samples, 'sample')}" for epochs, samples in (before, after)
        ]
        raise ConfigError(f"{' against '.join(texts)}: both commands must train on the same samples")


if __name__ == "__main__":
    sys.exit(main())
