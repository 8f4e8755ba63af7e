"""Checks of dpexp against known truths on this machine: faults are injected into real workers, and must be found."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from dpexp.analysis.efficiency import tree
from dpexp.analysis.intervals import Estimate
from dpexp.analysis.undisturbed import have_steps, phases_of_workers
from dpexp.calibrate.bench import Arm, Bench
from dpexp.calibrate.faults import Fault, FaultyLauncher
from dpexp.clock.recorder import Recorder
from dpexp.config.experiment import ExperimentConfig
from dpexp.phases import COMMUNICATE, COMPUTE, DATA, PHASES, UPDATE, WAIT
from dpexp.results.schema import Training

DELAY_SECONDS = 5e-3
SLOWDOWN = 1.02
TOLERANCE = 0.15  # of a delay, for the noise of the machine
MOST_COST = 0.02  # of a step
MOST_OF_TURNS = 0.03  # of a training's time: both sides of a speedup take turns


@dataclass(frozen=True)
class Check:
    """The outcome of one check."""

    passed: bool
    text: str


def checks() -> Iterator[Check]:
    """Each check as soon as it is done; about a minute and a half in all."""
    bench = Bench()
    sequential, two = bench.config("strategy=sequential", "workers=1"), bench.config("workers=2")
    first = bench.train(sequential=Arm(sequential), two=Arm(two))  # the first launch is cold
    yield _check_same(bench.ratio(Arm(sequential), Arm(sequential), 16))
    yield _check_turns(*bench.turns_and_one_piece(sequential, 16))
    slower, control = Fault(slowdown=SLOWDOWN), Fault(slowdown=1.0)
    yield _check_slower(bench.ratio(Arm(sequential, slower), Arm(sequential, control), 16))
    unrecorded = replace(two, measurement=replace(two.measurement, phases=False))
    share = _recording_seconds() / (first["two"].seconds / two.updates)
    yield _check_cost(bench.ratio(Arm(two), Arm(unrecorded), 10), share)

    work, exchange = Fault(compute_seconds=DELAY_SECONDS, compute_rank=1), Fault(communicate_seconds=DELAY_SECONDS)
    faulty = [bench.train(plain=Arm(two), delayed=Arm(two, work), late=Arm(two, exchange)) for _ in range(3)]
    plain, delayed, late = ([trainings[name] for trainings in faulty] for name in ("plain", "delayed", "late"))
    yield _check_imbalance(plain, delayed, two.updates)
    yield _check_communication(plain, late, two.updates)
    yield _check_cold_start(bench, sequential, first["sequential"].seconds / sequential.updates)


def _check_same(ratio: Estimate) -> Check:
    return Check(
        ratio.low <= 1 <= ratio.high, f"the same training twice (A/A): ratio {_shown(ratio)}; should include 1"
    )


def _check_turns(ratio: Estimate, handover_seconds: float) -> Check:
    return Check(
        abs(ratio.value - 1) < MOST_OF_TURNS or ratio.low <= 1 <= ratio.high,
        f"taking turns: time in turns / in one piece {_shown(ratio)}; should be 1 +- {MOST_OF_TURNS}; "
        f"a handover takes {1e3 * handover_seconds:.1f} ms, which are not timed",
    )


def _check_slower(ratio: Estimate) -> Check:
    return Check(
        ratio.low > 1 and ratio.low <= SLOWDOWN <= ratio.high,
        f"{100 * (SLOWDOWN - 1):.0f} % slower: ratio {_shown(ratio)}; should include {SLOWDOWN:.2f}, and not 1",
    )


def _check_cost(ratio: Estimate, share: float) -> Check:
    """Whole trainings can't resolve 2 % on a restless machine, so the recording of a step is also timed by itself."""
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
            for name in ("load_balance", "communication_efficiency")
        ]
        return cls(added("wait"), added("communicate"), ", ".join(changes))


def _check_imbalance(plain: list[Training], delayed: list[Training], updates: int) -> Check:
    """A delay of d a step on one of two ranks makes the other wait d: d / 2 on average, and none communicate more."""
    delay, added = 1e3 * DELAY_SECONDS, _Added.between(plain, delayed, updates)
    return Check(
        abs(added.waiting - delay / 2) < TOLERANCE * delay and abs(added.communicating) < TOLERANCE * delay,
        f"{delay:.0f} ms more work a step on rank 1: {added.waiting:+.2f} ms waiting a worker, "
        f"should be {delay / 2:.1f}; {added.communicating:+.2f} ms communicating, should be 0; {added.factors}",
    )


def _check_communication(plain: list[Training], late: list[Training], updates: int) -> Check:
    """A delay of d a step in every rank's communication: all communicate d longer, and none wait more."""
    delay, added = 1e3 * DELAY_SECONDS, _Added.between(plain, late, updates)
    return Check(
        abs(added.communicating - delay) < TOLERANCE * delay and added.waiting < TOLERANCE * delay,
        f"{delay:.0f} ms more communication a step: {added.communicating:+.2f} ms communicating, "
        f"should be {delay:.0f}; {added.waiting:+.2f} ms waiting, should be 0; {added.factors}",
    )


def _check_cold_start(bench: Bench, config: ExperimentConfig, step_seconds: float) -> Check:
    """The trainings of the first block take twice as long: it must be discarded, without a trace in the others."""
    cold = Fault(compute_seconds=step_seconds)
    launcher = FaultyLauncher({"candidate": cold, "baseline": cold}, launches=1)
    first, *kept = bench.blocks(config, launcher)
    ratio = first.candidate.seconds / max(block.candidate.seconds for block in kept)
    return Check(
        first.warmup and not any(block.warmup for block in kept) and ratio > 1.2,
        f"a cold first run, {ratio:.1f} times as slow as the slowest other: its block should be discarded",
    )


def _factor(trainings: list[Training], name: str) -> float:
    """One factor of the efficiency tree, as the mean over trainings."""
    trees = [
        tree(sum(workers[0][phase] for phase in PHASES), workers, [], 1.0)
        for workers in phases_of_workers(trainings, have_steps(trainings))
    ]
    return statistics.mean(float(getattr(factors, name)) for factors in trees)


def _phase_seconds(trainings: list[Training], phase: str) -> float:
    """The total seconds of one worker, as the mean over workers and trainings."""
    return statistics.mean(
        worker[phase] for workers in phases_of_workers(trainings, have_steps(trainings)) for worker in workers
    )


def _shown(ratio: Estimate) -> str:
    return f"{ratio.value:.3f} ({ratio.low:.3f} to {ratio.high:.3f})"
