"""Does the instrument tell the truth on this machine? `python -m dpexp.calibrate` holds it against known truths.

Faults are put into real worker processes; what the instrument then says must be the fault and nothing else.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from hydra import compose, initialize_config_dir

from dpexp import environment, kernels, models, server, terminal, worker
from dpexp.compose import config_folder, to_experiment
from dpexp.config import ExperimentConfig
from dpexp.data.dataset import Dataset, load
from dpexp.efficiency import tree
from dpexp.faults import Fault, FaultyGroup
from dpexp.measurement import measure, train_group
from dpexp.phases import Recorder
from dpexp.position import COMMUNICATE, COMPUTE, DATA, UPDATE, WAIT
from dpexp.progress import Progress
from dpexp.results import Training
from dpexp.shared_memory import SharedTensors
from dpexp.stats import Estimate, paired_ratio

JOB = ("data.size=10000", "epochs=1", "measurement.best_sequential=false")
NONE = Fault()
DELAY_SECONDS = 5e-3
SLOWER = 1.10
TOLERANCE = 0.15  # of a delay, for what this machine does by itself
PROBE_COST = 0.02  # of a step


@dataclass(frozen=True)
class Verdict:
    """Whether one truth was told."""

    passed: bool
    text: str


def verdicts() -> Iterator[Verdict]:
    """Each verdict as it is reached; some two minutes in all."""
    bench = _Bench()
    alone, two = bench.config("strategy=sequential", "workers=1"), bench.config("workers=2")
    bench.train(two)  # the first launch is cold

    step_seconds = bench.train(alone).seconds / alone.updates
    yield _same(bench.ratio((alone, NONE), (alone, NONE), 20))
    yield _slower(bench.ratio((alone, Fault(slowdown=SLOWER)), (alone, Fault(slowdown=1.0)), 20))
    bare = replace(two, measurement=replace(two.measurement, phases=False))
    share = _marks_seconds() / (bench.train(two).seconds / two.updates)
    yield _cost(bench.ratio((two, NONE), (bare, NONE), 30), share)

    plain = [bench.train(two) for _ in range(5)]
    delayed = [bench.train(two, Fault(compute_seconds=DELAY_SECONDS, compute_rank=1)) for _ in range(5)]
    yield _imbalance(plain, delayed, two.updates)
    slow = [bench.train(two, Fault(communicate_seconds=DELAY_SECONDS)) for _ in range(5)]
    yield _communication(plain, slow, two.updates)
    yield bench.cold_start(alone, step_seconds)


def _same(ratio: Estimate) -> Verdict:
    return Verdict(
        ratio.low <= 1 <= ratio.high, f"the same training twice: ratio {_shown(ratio)}, and 1 lies in the interval"
    )


def _slower(ratio: Estimate) -> Verdict:
    found = ratio.low > 1 and ratio.low <= SLOWER <= ratio.high
    return Verdict(
        found, f"one made {100 * (SLOWER - 1):.0f} % slower: ratio {_shown(ratio)}, above 1, {SLOWER:.2f} within"
    )


def _cost(ratio: Estimate, share: float) -> Verdict:
    """Whole trainings can't tell 2 % on a restless machine: so the marks of a step are also timed by themselves."""
    return Verdict(
        ratio.low < 1 + PROBE_COST and share < PROBE_COST,
        f"the instrument's own cost: a step's marks take {100 * share:.2f} % of it, below {100 * PROBE_COST:.0f} %; "
        f"time with phases recorded / without is {_shown(ratio)}",
    )


def _marks_seconds(steps: int = 20_000) -> float:
    """What recording one step of sync_dp takes."""
    recorder = Recorder()
    recorder.start()
    started = time.perf_counter()
    for _ in range(steps):
        for phase in (DATA, COMPUTE, COMMUNICATE, WAIT, COMMUNICATE, UPDATE, COMMUNICATE):
            recorder.enter(phase)
        recorder.end_step()
    return (time.perf_counter() - started) / steps


@dataclass(frozen=True)
class _Added:
    """What a fault of DELAY_SECONDS added to each worker's step, in ms, and how it shows in the factors."""

    waiting: float
    communicating: float
    factors: str

    @classmethod
    def between(cls, plain: list[Training], faulty: list[Training], updates: int) -> _Added:
        def added(phase: str) -> float:
            return 1e3 * (_phase_seconds(faulty, phase) - _phase_seconds(plain, phase)) / updates

        changes = [
            f"{name.replace('_', ' ')} {100 * _factor(plain, name):.0f} % -> {100 * _factor(faulty, name):.0f} %"
            for name in ("load_balance", "communication")
        ]
        return cls(added("wait"), added("communicate"), ", ".join(changes))


def _imbalance(plain: list[Training], delayed: list[Training], updates: int) -> Verdict:
    """A delay of d a step on one of two ranks makes the other wait d: d / 2 on average, and nobody communicate more."""
    delay, added = 1e3 * DELAY_SECONDS, _Added.between(plain, delayed, updates)
    return Verdict(
        abs(added.waiting - delay / 2) < TOLERANCE * delay and abs(added.communicating) < TOLERANCE * delay,
        f"{delay:.0f} ms a step on rank 1: {added.waiting:+.2f} ms waiting on average ({delay / 2:.1f} put in), "
        f"{added.communicating:+.2f} ms communicating; {added.factors}",
    )


def _communication(plain: list[Training], slow: list[Training], updates: int) -> Verdict:
    """A delay of d a step in every rank's communication: all communicate d longer, and nobody waits more."""
    delay, added = 1e3 * DELAY_SECONDS, _Added.between(plain, slow, updates)
    return Verdict(
        abs(added.communicating - delay) < TOLERANCE * delay and added.waiting < TOLERANCE * delay,
        f"{delay:.0f} ms a step in communication: {added.communicating:+.2f} ms communicating ({delay:.0f} put in), "
        f"{added.waiting:+.2f} ms waiting; {added.factors}",
    )


class _Bench:
    """One job on this machine, trained with or without a fault."""

    def __init__(self) -> None:
        self._dataset: Dataset = load(self.config("workers=1"))
        self._initial: SharedTensors = models.initial_state(self.config("workers=1"), self._dataset)
        server.start_server()

    def config(self, *overrides: str) -> ExperimentConfig:
        """The job, composed with `overrides`."""
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            return to_experiment(compose("config", overrides=[*JOB, *overrides]))

    def train(self, config: ExperimentConfig, fault: Fault = NONE) -> Training:
        """One training by fresh processes."""
        kernel = kernels.choose(config, models.build(config.model, self._dataset.input_shape, self._dataset.classes))
        work = worker.Work(config, self._dataset, self._initial, kernel, evaluate=False, checkpoint=None)
        return train_group(work, lambda epoch: None, FaultyGroup([fault]))

    def ratio(
        self, one: tuple[ExperimentConfig, Fault], other: tuple[ExperimentConfig, Fault], blocks: int
    ) -> Estimate:
        """Time of the one over time of the other, from interleaved blocks, with a 99 % interval."""
        seconds: dict[int, list[float]] = {0: [], 1: []}
        for number in range(blocks):
            for arm in (0, 1) if number % 2 == 0 else (1, 0):
                seconds[arm].append(self.train(*(one, other)[arm]).seconds)
        return paired_ratio(seconds[0], seconds[1], level=0.99)

    def cold_start(self, config: ExperimentConfig, step_seconds: float) -> Verdict:
        """The first block's trainings take twice as long: it must be discarded, and leave no trace in the rest."""
        cold = Fault(compute_seconds=step_seconds)
        group = FaultyGroup([cold, cold], then=NONE)
        ignored: Callable[[Progress], None] = lambda progress: None  # noqa: E731
        first, *kept = measure(config, self._dataset, self._initial, None, ignored, group)
        slowest = max(block.candidate.seconds for block in kept)
        ratio = first.candidate.seconds / slowest
        return Verdict(
            first.warmup and not any(block.warmup for block in kept) and ratio > 1.2,
            f"a cold first run, {ratio:.1f} times as long as any other, is not counted: its block is discarded",
        )


def _factor(trainings: list[Training], name: str) -> float:
    """One factor of the efficiency tree, mean over trainings."""
    return statistics.mean(float(getattr(tree(own.seconds, own.phase_seconds, [], 1.0), name)) for own in trainings)


def _phase_seconds(trainings: list[Training], phase: str) -> float:
    """Of one worker, in all; mean over workers and trainings."""
    return statistics.mean(worker[phase] for own in trainings for worker in own.phase_seconds)


def _shown(ratio: Estimate) -> str:
    return f"{ratio.value:.3f} ({ratio.low:.3f} to {ratio.high:.3f})"


def main() -> int:
    """Print a verdict a line; the exit status is 0 when all passed."""
    argparse.ArgumentParser(prog="python -m dpexp.calibrate", description=__doc__).parse_args()
    terminal.show_line(environment.describe().machine)
    passed = True
    for verdict in verdicts():
        terminal.show_line(f"{'ok    ' if verdict.passed else 'FAILED'} {verdict.text}")
        passed &= verdict.passed
    terminal.show_line("the instrument tells the truth here" if passed else "don't trust this instrument here, now")
    return 0 if passed else 1


if __name__ == "__main__":
    # Workers import this module by its name, not as the main program.
    from dpexp import calibrate

    sys.exit(calibrate.main())
