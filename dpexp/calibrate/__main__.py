"""`python -m dpexp.calibrate`: does dpexp measure correctly on this machine?

It measures cases whose result is known: trainings against themselves, and real workers with injected faults.
"""

import math
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dpexp.analysis.arm_statistics import ArmStatistics
from dpexp.analysis.disturbance import UNDISTURBED_RATIO, fastest_step_seconds
from dpexp.analysis.estimate import Estimate, geometric_mean
from dpexp.analysis.ratio_estimate import compare
from dpexp.calibrate.faults import Fault
from dpexp.config.compose import compose_config
from dpexp.config.job import CANDIDATE, JobConfig
from dpexp.config.overrides import with_script
from dpexp.entry_point import Parser, entry_point, hold_measurement_lock, show_line
from dpexp.launchers.local import LocalLauncher
from dpexp.machine.environment import current_environment
from dpexp.measurement import job
from dpexp.results.schema import Block

JOB = ("data.size=20000", "measurement.best_sequential=false")
SCRIPT = with_script(["workers=1", "--", sys.executable, str(Path(__file__).parent / "script.py")])
PAIRS = 6  # pairs of a measurement in turns and a whole training
LEVEL = 0.99  # confidence level: a check rarely fails by chance

AGAINST_ITSELF = "against itself (A/A)"
DELAY_SECONDS = 5e-3
SLOWDOWN = 1.02
TOLERANCE = 0.15  # share of a delay by which its measurement may be off
MAX_OFF = 0.03  # share of a training's time by which the prediction from its steps may be off


@entry_point
def main(arguments: list[str]) -> int:
    """Print a line for each check; the exit status is 0 when all passed."""
    Parser(prog="python -m dpexp.calibrate", description=__doc__).parse_args(arguments)
    show_line(current_environment().machine)
    failed = 0
    with hold_measurement_lock():
        for check in checks():
            show_line(f"{'ok    ' if check.passed else 'FAILED'} {check.text}")
            failed += not check.passed
    problem = f"{failed} of the checks failed: do not trust measurements on this machine in its current state"
    show_line(problem if failed else "all checks passed")
    return int(failed > 0)


@dataclass(frozen=True)
class Check:
    """The outcome of one check."""

    passed: bool
    text: str


def checks() -> Iterator[Check]:
    """Yield each check as soon as it is done; they take about two minutes in all."""
    one_process, two_workers = ("strategy=sequential", "workers=1"), ("workers=2",)
    for name, workers, seconds in (("one process", one_process, 10), ("2 workers", two_workers, 16)):
        config = _compose_timed(seconds, *workers)
        yield check_ratio(f"{name} {AGAINST_ITSELF}", _ratio(config, config), 1.0)
        yield check_segments(name, _steps_over_trainings(*workers))
        slower, control = Fault(slowdown=SLOWDOWN), Fault(slowdown=1.0)
        ratio = _ratio(config, config, first=slower, second=control)
        yield check_ratio(f"{name}, {100 * (SLOWDOWN - 1):.0f} % slower", ratio, SLOWDOWN)
    script = _compose_timed(20, *SCRIPT)
    yield check_ratio(f"a script {AGAINST_ITSELF}", _ratio(script, script), 1.0)
    config = _compose_timed(12, *two_workers)
    faults = {"working": Fault(compute_seconds=DELAY_SECONDS), "late": Fault(communicate_seconds=DELAY_SECONDS)}
    blocks = _blocks(dict.fromkeys(("plain", *faults), config), faults)
    plain, working, late = (_undisturbed(config, blocks, name) for name in ("plain", *faults))
    yield check_delay("computation on rank 1", plain, working, waiting=0.5, communicating=0.0)
    yield check_delay("communication", plain, late, waiting=0.0, communicating=1.0)


def _compose_timed(seconds: float, *overrides: str) -> JobConfig:
    """Compose a job that is measured for this many seconds: its precision is never reached."""
    return compose_config(*JOB, "measurement.precision=0.0001", f"measurement.max_seconds={seconds}", *overrides)


def _blocks(configs: Mapping[str, JobConfig], faults: Mapping[str, Fault]) -> list[Block]:
    """Measure blocks of these arms, some of them with faults."""
    baseline, *_, candidate = configs
    with tempfile.TemporaryDirectory() as folder:
        return job.measure_in_turns(configs, baseline, candidate, Path(folder), LocalLauncher(faults))


def _ratio(first: JobConfig, second: JobConfig, /, **faults: Fault) -> Estimate:
    """Measure the ratio of the times of two trainings."""
    return compare([_blocks({"first": first, "second": second}, faults)], "first", "second", level=LEVEL).shown


def _steps_over_trainings(*overrides: str) -> Estimate:
    """Measure the time of a training as computed from steps in turns, over that of whole trainings."""
    once = ("measurement.baseline=none", "measurement.repeats=1", "measurement.whole_trainings=always")
    config = _compose_timed(1.5, *overrides, *once)
    ratios = []
    for _ in range(PAIRS):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            result = job.measure_job(config, folder)
        steps = ArmStatistics(config, result.blocks, CANDIDATE, math.inf, (), result.blocks)
        ratios.append(steps.seconds.value / result.trainings[CANDIDATE][0].seconds)
    return geometric_mean(ratios, LEVEL)


def _undisturbed(config: JobConfig, blocks: list[Block], name: str) -> ArmStatistics:
    """Return the statistics of an arm's undisturbed steps."""
    limit = UNDISTURBED_RATIO * fastest_step_seconds([block.arms[name] for block in blocks])
    return ArmStatistics(config, blocks, name, limit, (), blocks)


def check_ratio(kind: str, ratio: Estimate, expected: float) -> Check:
    """Check that the interval of a ratio includes the known value, and excludes 1 unless that is 1."""
    passed = ratio.low <= expected <= ratio.high and (expected == 1 or ratio.low > 1)
    should = "1" if expected == 1 else f"{expected:.2f}, but not 1"
    return Check(passed, f"{kind}: ratio {ratio:.3f}; the interval should include {should}")


def check_segments(name: str, ratio: Estimate) -> Check:
    """Check that times computed from steps in turns are those of whole trainings."""
    return Check(
        abs(ratio.value - 1) < MAX_OFF or ratio.low <= 1 <= ratio.high,
        f"{name}: time of a training from steps in turns / from whole trainings: {ratio:.3f}; should be 1 +- {MAX_OFF}",
    )


def check_delay(kind: str, plain: ArmStatistics, delayed: ArmStatistics, waiting: float, communicating: float) -> Check:
    """Check that a delay of DELAY_SECONDS in each step is attributed to waiting and communicating in these shares."""
    waits, communicates = (_mean(delayed, phase) - _mean(plain, phase) for phase in ("wait", "communicate"))
    off = abs(waits - waiting * DELAY_SECONDS), abs(communicates - communicating * DELAY_SECONDS)
    delay = 1e3 * DELAY_SECONDS
    return Check(
        max(off) < TOLERANCE * DELAY_SECONDS,
        f"{delay:.0f} ms more {kind} in each step: {1e3 * waits:+.2f} ms waiting per worker, should be "
        f"{waiting * delay:.1f}; {1e3 * communicates:+.2f} ms communicating, should be {communicating * delay:.1f}",
    )


def _mean(arm: ArmStatistics, phase: str) -> float:
    """Return the seconds of a phase in a step, averaged over workers."""
    return statistics.fmean(worker[phase] for worker in arm.phases)


if __name__ == "__main__":
    sys.exit(main())
