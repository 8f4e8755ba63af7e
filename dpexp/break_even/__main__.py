"""The break-even batch: `python -m dpexp.break_even workers=2 [key=value ...]`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from pydantic import ValidationError

from dpexp.analysis.intervals import Estimate
from dpexp.break_even.search import Search, search
from dpexp.cli import runner
from dpexp.cli.boundary import Parser, command
from dpexp.config.compose import compose_job, with_script
from dpexp.config.explain import explain
from dpexp.config.job import JobConfig, from_settings
from dpexp.config.script import ScriptConfig
from dpexp.errors import ConfigError, counted
from dpexp.launchers.local import LocalLauncher
from dpexp.machine.environment import describe
from dpexp.machine.exclusive import exclusive
from dpexp.measurement import job
from dpexp.measurement.user_files import fingerprint
from dpexp.report import terminal
from dpexp.results import storage

MOST_TIMES = 256  # the first batch


@command
def main(arguments: list[str]) -> int:
    """Print the speedup at each measured batch, then the break-even batch; return the exit status."""
    parser = Parser(
        prog="python -m dpexp.break_even",
        description="Find the batch size of a worker from which several workers beat one process.",
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for python -m dpexp; at least workers=2")
    parser.add_argument("--output", type=Path, help="the folder of all results (default: outputs/break_even/<time>)")
    options = parser.parse_intermixed_args(with_script(arguments))
    folder = options.output or Path("outputs/break_even") / time.strftime("%Y-%m-%d_%H-%M-%S")
    config = compose_job(*options.overrides)
    _check(config)
    with exclusive(terminal.show_waiting):
        found = search(_Measurement(config, folder), config.batch.size, _most(config))
    terminal.show_line(answer(config.workers, found))
    terminal.show_line(f"results are in {folder}")
    return 0


def answer(workers: int, found: Search) -> str:
    """What the search has found, in one sentence."""
    who, least, most = counted(workers, "worker"), min(found.speedups), max(found.speedups)
    batch = found.break_even
    if batch is None and len({speedup.value < 1 for speedup in found.speedups.values()}) > 1:
        return f"no break-even batch found: the speedup of {who} doesn't rise with the batch; measure again"
    if batch is None:
        compared = "slower" if found.speedups[most].value < 1 else "faster"
        shown = all(not speedup.low <= 1 <= speedup.high for speedup in found.speedups.values())
        sure = "" if shown else ", though not all intervals exclude 1"
        return (
            f"no break-even batch found: {who} are {compared} than one process at all {len(found.speedups)} measured "
            f"batches from {least:,} to {most:,}{sure}"
        )
    ends = f"{batch.low:,.0f} to {batch.high:,.0f}" if batch.high < float("inf") else f"{batch.low:,.0f} or more"
    assert found.checked is not None
    checked = found.speedups[found.checked]
    verdict = "confirmed" if found.is_confirmed else "not confirmed"
    return (
        f"{who} beat one process from a batch of {batch.value:,.0f} each ({ends}), {verdict} by measuring: "
        f"the speedup at {found.checked:,} is {checked.value:.2f} ({checked.low:.2f} to {checked.high:.2f})"
    )


class _Measurement:
    """Measures the speedup at one batch after the other, each as a job in its own folder."""

    def __init__(self, config: JobConfig, folder: Path) -> None:
        self._config, self._folder = config, folder
        self._launcher, self._environment = LocalLauncher(), describe()

    def __call__(self, batch: int) -> Estimate:
        """Raises DpexpError."""
        config = _with_batch(self._config, batch)
        display = terminal.Display()
        display.begin(0, "")
        try:
            folder = self._folder / f"batch_{batch}"
            with storage.write_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
            files = fingerprint(config)
            job.run(config, folder, display.update, self._launcher, self._environment, files, record_bad_input=False)
        finally:
            display.close()
        speedup = job.speedup(folder)
        terminal.show_line(f"batch {batch:,}: speedup {speedup.value:.2f} ({speedup.low:.2f} to {speedup.high:.2f})")
        return speedup


def _check(config: JobConfig) -> None:
    """Raise ConfigError where there is nothing to search for."""
    runner.check(config)
    if config.workers == 1:
        raise ConfigError("workers=1: it is compared with one process; set workers=2 or more")
    if (config.batch.scope, config.measurement.baseline) != ("per_worker", "paired"):
        raise ConfigError("the break-even batch needs batch.scope=per_worker and measurement.baseline=paired")
    if config.measurement.repeats < 2:
        raise ConfigError("measurement.repeats=1: the break-even batch needs intervals; set 2 or more")
    if isinstance(config, ScriptConfig):
        other = _with_batch(config, config.batch.size + 1)
        assert isinstance(other, ScriptConfig)
        for name, fixed in (
            ("command", other.command == config.command),
            ("baseline_command", other.baseline().command == config.baseline().command),
        ):
            if fixed:
                raise ConfigError(
                    f"script.{name}={getattr(config.script, name)}: the batch is always the same; write "
                    "{local_batch_size} where it belongs"
                )


def _with_batch(config: JobConfig, batch: int) -> JobConfig:
    """The same job with another batch; times of a script are for as many samples as its steps need.

    Raises ConfigError where the other settings don't go with it.
    """
    settings = config.settings
    settings["batch"]["size"] = batch
    if isinstance(config, ScriptConfig):
        settings["data"]["size"] = max(config.data.size, batch * config.workers)
    try:
        return from_settings(settings)
    except ValidationError as error:
        raise ConfigError(explain(error)) from error


def _most(config: JobConfig) -> int:
    """The largest batch to try; an epoch of dpexp's own trainings has at least one."""
    most = MOST_TIMES * config.batch.size
    return most if isinstance(config, ScriptConfig) else min(most, config.data.size // config.workers)


if __name__ == "__main__":
    sys.exit(main())
