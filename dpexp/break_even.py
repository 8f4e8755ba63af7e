"""Find the break-even batch: the batch size of a worker from which several workers beat one process."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from dpexp.analysis.decision.break_even import Search, search
from dpexp.analysis.intervals import Estimate
from dpexp.cli import runner
from dpexp.config.compose import Job, Plan, compose_job, with_script
from dpexp.config.experiment import AnyConfig
from dpexp.config.job import JobConfig
from dpexp.config.script import ScriptConfig
from dpexp.errors import ConfigError, counted
from dpexp.machine.environment import describe
from dpexp.report import terminal
from dpexp.report.command import Parser, command, measuring_alone

MOST_TIMES = 256  # the first batch


@command
def main(arguments: list[str]) -> int:
    """Print the speedup at each measured batch, then the break-even batch; return the exit status."""
    parser = Parser(prog="python -m dpexp.break_even", description=__doc__)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for python -m dpexp; at least workers=2")
    parser.add_argument("--output", type=Path, help="the folder of all results (default: outputs/break_even/<time>)")
    options = parser.parse_intermixed_args(with_script(arguments))
    folder = options.output or Path("outputs/break_even") / time.strftime("%Y-%m-%d_%H-%M-%S")
    config = compose_job(*options.overrides)
    _check(config)
    most = MOST_TIMES * config.batch.size
    if not isinstance(config, ScriptConfig):  # an epoch of dpexp's own trainings has at least one batch
        most = min(most, config.data.size // config.workers)
    with measuring_alone():
        found = search(lambda batch: _measured(options.overrides, batch, folder), config.batch.size, most)
    terminal.show_line(answer(config.workers, found))
    terminal.show_line(f"results are in {folder}")
    return 0


def answer(workers: int, found: Search) -> str:
    """What the search has found, in one sentence."""
    who, batch = counted(workers, "worker"), found.break_even
    if batch is None:
        below = {speedup.value < 1 for speedup in found.speedups.values()}
        if len(below) > 1:
            return f"no break-even batch found: the speedup of {who} doesn't rise with the batch; measure again"
        side = "below" if True in below else "above"
        return f"no break-even batch found: the speedup of {who} is {side} 1 at all measured batches"
    assert found.checked is not None
    verdict = "confirmed" if found.is_confirmed else "not confirmed"
    return (
        f"{who} beat one process from a batch of {batch:,.0f} each, {verdict} by measuring: "
        f"the speedup at {found.checked:,} is {found.speedups[found.checked]:.2f}"
    )


def _measured(overrides: Sequence[str], batch: int, folder: Path) -> Estimate:
    """The speedup at one batch, from a job in a folder of its own. Raises DpexpError."""
    from dpexp.measurement.job import speedup  # imports torch: mistakes don't wait for it

    job = Job(f"batch_{batch}", [*overrides, f"batch.size={batch}"], with_batch(overrides, batch))
    list(runner.measured(Plan(folder, False, [job]), describe()))
    found = speedup(folder / job.folder)
    terminal.show_line(f"batch {batch:,}: speedup {found:.2f}")
    return found


def with_batch(overrides: Sequence[str], batch: int) -> AnyConfig:
    """The job with another batch; times of a script are for as many samples as its steps need. Raises ConfigError."""
    config = compose_job(*overrides)
    size = max(config.data.size, batch * config.workers if isinstance(config, ScriptConfig) else 0)
    return compose_job(*overrides, f"batch.size={batch}", f"data.size={size}")


def _check(config: JobConfig) -> None:
    """Raise ConfigError where there is nothing to search for."""
    runner.check(config)
    if config.workers == 1:
        raise ConfigError("workers=1: it is compared with one process; set workers=2 or more")
    if (config.batch.scope, config.measurement.baseline) != ("per_worker", "paired"):
        raise ConfigError("the break-even batch needs batch.scope=per_worker and measurement.baseline=paired")
    if isinstance(config, ScriptConfig):
        for name in ("command", "baseline_command"):
            command = getattr(config.script, name)
            if command is not None and "batch_size}" not in command:
                raise ConfigError(
                    f"script.{name}={command}: the batch is always the same; write {{local_batch_size}} where it "
                    "belongs"
                )


if __name__ == "__main__":
    sys.exit(main())
