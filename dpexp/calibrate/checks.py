"""Checks of dpexp against known truths on this machine: faults are injected into real workers, and must be found."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from dpexp.analysis.disturbance import LONGER, fastest
from dpexp.analysis.efficiency import Seconds, phases_of_step, tree
from dpexp.analysis.intervals import Estimate
from dpexp.analysis.ratios import step_seconds
from dpexp.calibrate.bench import Bench, Contender
from dpexp.calibrate.faults import Fault
from dpexp.clock.recorder import Recorder
from dpexp.results.phases import COMMUNICATE, COMPUTE, DATA, UPDATE, WAIT
from dpexp.results.schema import Block

DELAY_SECONDS = 5e-3
SLOWDOWN = 1.02
TOLERANCE = 0.15  # of a delay, for the noise of the machine
MOST_COST = 0.02  # of a step
MOST_OFF = 0.03  # of a training's time, from steps


@dataclass(frozen=True)
class Check:
    """The outcome of one check."""

    passed: bool
    text: str


def checks() -> Iterator[Check]:
    """Each check as soon as it is done; about two minutes in all."""
    bench = Bench()
    sequential, two = bench.config("strategy=sequential", "workers=1"), bench.config("workers=2")
    yield check_same("one process", bench.ratio(Contender(sequential), Contender(sequential), 8))
    yield check_same("2 workers", bench.ratio(Contender(two), Contender(two), 12))
    yield check_same("a script", bench.script_against_itself(20))
    yield check_segments("one process", bench.segments_and_trainings(sequential, 6))
    yield check_segments("2 workers", bench.segments_and_trainings(two, 6))
    slower, control = Fault(slowdown=SLOWDOWN), Fault(slowdown=1.0)
    yield check_slower("one process", bench.ratio(Contender(sequential, slower), Contender(sequential, control), 10))
    yield check_slower("2 workers", bench.ratio(Contender(two, slower), Contender(two, control), 16))
    unrecorded = replace(two, measurement=replace(two.measurement, phases=False))
    cost = bench.ratio(Contender(two), Contender(unrecorded), 12)
    work, exchange = Fault(compute_seconds=DELAY_SECONDS, compute_rank=1), Fault(communicate_seconds=DELAY_SECONDS)
    blocks = bench.blocks(12, plain=Contender(two), delayed=Contender(two, work), late=Contender(two, exchange))
    plain, delayed, late = (step_of(blocks, name) for name in ("plain", "delayed", "late"))
    yield check_cost(cost, _recording_seconds() / plain.seconds)
    yield check_imbalance(plain, delayed)
    yield check_communication(plain, late)


def check_same(who: str, ratio: Estimate) -> Check:
    """A/A."""
    return Check(ratio.low <= 1 <= ratio.high, f"{who} against itself (A/A): ratio {_shown(ratio)}; should include 1")


def check_segments(who: str, ratio: Estimate) -> Check:
    """Times from steps in turns must be those of whole trainings."""
    return Check(
        abs(ratio.value - 1) < MOST_OFF or ratio.low <= 1 <= ratio.high,
        f"{who}: time of a training, from steps in turns / of whole trainings {_shown(ratio)}; "
        f"should be 1 +- {MOST_OFF}",
    )


def check_slower(who: str, ratio: Estimate) -> Check:
    """A candidate that is a little slower must be seen."""
    return Check(
        ratio.low > 1 and ratio.low <= SLOWDOWN <= ratio.high,
        f"{who}, {100 * (SLOWDOWN - 1):.0f} % slower: ratio {_shown(ratio)}; should include {SLOWDOWN:.2f}, and not 1",
    )


def check_cost(ratio: Estimate, share: float) -> Check:
    """The recording of a step is also timed by itself, since a restless machine may hide it."""
    return Check(
        ratio.low < 1 + MOST_COST and share < MOST_COST,
        f"cost of recording phases: {100 * share:.2f} % of a step, should be below {100 * MOST_COST:.0f} %; "
        f"time with / without recording {_shown(ratio)}",
    )


def _recording_seconds(steps: int = 20_000) -> float:
    """The time that recording one step of sync_dp takes."""
    recorder = Recorder()
    recorder.start()
    started = time.perf_counter()
    for _ in range(steps):
        for phase in (DATA, COMPUTE, COMMUNICATE, WAIT, COMMUNICATE, UPDATE, COMMUNICATE):
            recorder.enter(phase)
        recorder.end_step()
    return (time.perf_counter() - started) / steps


@dataclass(frozen=True)
class Step:
    """Of an arm: a step's seconds, and where they go in each worker."""

    seconds: float
    workers: Sequence[Seconds]

    def mean(self, phase: str) -> float:
        """Seconds of a phase, as the mean over workers."""
        return sum(worker[phase] for worker in self.workers) / len(self.workers)

    def factor(self, name: str) -> float:
        """One factor of the efficiency tree."""
        return float(getattr(tree(self.seconds, self.workers, [], 1.0), name))


def step_of(blocks: Sequence[Block], name: str) -> Step:
    """An undisturbed step."""
    limit = LONGER * fastest([block.arms[name] for block in blocks])
    found = step_seconds(blocks, name, limit)
    assert found is not None
    seconds = found.estimate().value
    return Step(seconds, phases_of_step(blocks, name, limit, seconds))


def check_imbalance(plain: Step, delayed: Step) -> Check:
    """A delay of d a step on one of two ranks makes the other wait d: d / 2 on average, and none communicate more."""
    delay = 1e3 * DELAY_SECONDS
    waiting, communicating = _added(plain, delayed, "wait"), _added(plain, delayed, "communicate")
    return Check(
        abs(waiting - delay / 2) < TOLERANCE * delay and abs(communicating) < TOLERANCE * delay,
        f"{delay:.0f} ms more work a step on rank 1: {waiting:+.2f} ms waiting a worker, should be {delay / 2:.1f}; "
        f"{communicating:+.2f} ms communicating, should be 0; {_factors(plain, delayed)}",
    )


def check_communication(plain: Step, late: Step) -> Check:
    """A delay of d a step in every rank's communication: all communicate d longer, and none wait more."""
    delay = 1e3 * DELAY_SECONDS
    waiting, communicating = _added(plain, late, "wait"), _added(plain, late, "communicate")
    return Check(
        abs(communicating - delay) < TOLERANCE * delay and waiting < TOLERANCE * delay,
        f"{delay:.0f} ms more communication a step: {communicating:+.2f} ms communicating, should be {delay:.0f}; "
        f"{waiting:+.2f} ms waiting, should be 0; {_factors(plain, late)}",
    )


def _added(plain: Step, faulty: Step, phase: str) -> float:
    """Milliseconds."""
    return 1e3 * (faulty.mean(phase) - plain.mean(phase))


def _factors(plain: Step, faulty: Step) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {100 * plain.factor(name):.0f} % -> {100 * faulty.factor(name):.0f} %"
        for name in ("load_balance", "communication_efficiency")
    )


def _shown(ratio: Estimate) -> str:
    return f"{ratio.value:.3f} ({ratio.low:.3f} to {ratio.high:.3f})"
