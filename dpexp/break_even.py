"""Find the break-even batch: the local batch size above which several workers are faster than one process."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dpexp.analysis.intervals import Estimate
from dpexp.analysis.table import aggregate
from dpexp.cli import runner
from dpexp.config.compose import Job, Plan, compose_job, with_script
from dpexp.config.experiment import AnyConfig
from dpexp.config.job import JobConfig
from dpexp.config.script import ScriptConfig
from dpexp.errors import ConfigError, counted
from dpexp.report import terminal
from dpexp.report.command import Parser, command, measuring_alone

MOST_TIMES = 256  # the first batch
STEP = 4  # from one batch to the next, until one is on the other side
MOST_CHECKS = 3
WELL_KNOWN = 0.1  # half of an interval, as a share
NEAREST = 3  # measured batches whose speedups are nearest to 1 make the line
DRAWS = 4000


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
        f"{who} are faster than one process from a local batch of {batch:,.0f} on, {verdict} by measuring: "
        f"the speedup at {found.checked:,} is {found.speedups[found.checked]:.2f}"
    )


def _measured(overrides: Sequence[str], batch: int, folder: Path) -> Estimate:
    """The speedup at one batch, from a job in a folder of its own. Raises DpexpError."""
    job = Job(f"batch_{batch}", [*overrides, f"batch.size={batch}"], with_batch(overrides, batch))
    list(runner.measure_jobs(Plan(folder, False, [job])))
    found = aggregate([folder / job.folder]).good[0].speedup
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
        raise ConfigError("workers=1: there is nothing to compare with one process; set workers=2 or more")
    if (config.batch.scope, config.measurement.baseline) != ("per_worker", "paired"):
        raise ConfigError("the break-even batch needs batch.scope=per_worker and measurement.baseline=paired")
    if isinstance(config, ScriptConfig):
        for name in ("command", "baseline_command"):
            command = getattr(config.script, name)
            if command is not None and "batch_size}" not in command:
                raise ConfigError(
                    f"script.{name}={command}: its batch size is fixed; write {{local_batch_size}} instead of it"
                )


@dataclass
class Search:
    """The speedup at each measured batch, and the last one that was measured to check a prediction."""

    speedups: dict[int, Estimate]
    checked: int | None = None

    @property
    def break_even(self) -> Estimate | None:
        """The batch from which workers beat one process; None where it was not found."""
        return crossing(self.speedups)

    @property
    def is_confirmed(self) -> bool:
        """Whether the speedup at the predicted batch is precise, and its interval includes 1."""
        if self.checked is None:
            return False
        speedup = self.speedups[self.checked]
        return speedup.low <= 1 <= speedup.high and speedup.precision <= WELL_KNOWN


def search(measure: Callable[[int], Estimate], first: int, most: int) -> Search:
    """Measure at batch `first`, then larger or smaller ones up to `most`, then where the speedup should be 1."""
    found, batch = Search({first: measure(first)}), first
    while found.break_even is None:
        batch = batch * STEP if found.speedups[batch].value < 1 else batch // STEP
        if not 1 <= batch <= most:
            return found
        found.speedups[batch] = measure(batch)
    for _ in range(MOST_CHECKS):
        predicted = found.break_even
        if predicted is None:  # the speedup doesn't rise with the batch
            break
        found.checked = round(min(max(1.0, predicted.value), most))
        if found.checked not in found.speedups:
            found.speedups[found.checked] = measure(found.checked)
        if found.is_confirmed:
            break
    return found


def crossing(speedups: Mapping[int, Estimate]) -> Estimate | None:
    """The batch size at which the speedup passes 1; None where no two of the measured ones are on different sides.

    Near it, the log of the speedup is close to a line in the log of the batch: it is fitted to the nearest points, each
    with the weight of its interval. The interval of the crossing is that of lines through values drawn from these
    intervals. A high end of infinity says that the speedup may not reach 1.
    """
    nearest = sorted(speedups, key=lambda batch: abs(math.log(speedups[batch].value)))
    sides = [[batch for batch in nearest if (speedups[batch].value < 1) == below] for below in (True, False)]
    if not all(sides):
        return None
    pair = [side[0] for side in sides]
    chosen = pair + [batch for batch in nearest if batch not in pair][: NEAREST - 2]
    values = np.log([speedups[batch].value for batch in chosen])
    deviations = np.maximum(1e-6, [math.log1p(speedups[batch].precision) / 1.96 for batch in chosen])
    draws = np.random.default_rng(0).normal(values, deviations, (DRAWS, len(chosen)))
    slopes, levels = np.polyfit(np.log(chosen), np.vstack([values, draws]).T, 1, w=1 / deviations)
    zeros = np.divide(-levels, slopes, out=np.full_like(levels, math.inf), where=slopes > 0)
    if zeros[0] == math.inf:  # the third point bends the line too far
        return crossing({batch: speedups[batch] for batch in pair}) if len(chosen) > len(pair) else None
    with np.errstate(over="ignore"):
        low, high = np.exp(np.percentile(zeros[1:], (2.5, 97.5), method="nearest"))  # some are infinite
        return Estimate(float(np.exp(zeros[0])), float(low), float(high))


if __name__ == "__main__":
    sys.exit(main())
