"""How long a job measures, by a clock that only moves where a test says so."""

from __future__ import annotations

import contextlib
import math
import random
import re
from types import SimpleNamespace

import numpy as np
import pytest
from basics import tiny

from dpexp.analysis.ratio_estimate import BLOCK_STD, compare
from dpexp.analysis.warnings import _precision_warnings
from dpexp.config.built_in import BuiltInConfig
from dpexp.measurement import blocks as blocks_module
from dpexp.measurement import budget as budget_module
from dpexp.measurement import rounds as rounds_module
from dpexp.measurement.blocks import run_blocks
from dpexp.measurement.budget import END_SECONDS, Budget
from dpexp.measurement.built_in_trainer import PACE
from dpexp.results.schema import Arm, Conditions, Process

SHORT_SECONDS, LONG_SECONDS = BuiltInConfig.default_max_seconds

MAX = "measurement.max_seconds"
ADAPTIVE = ["measurement.precision=0.02", "measurement.repeats=2"]


@pytest.fixture
def clock(monkeypatch):
    """The time that the measuring loop sees."""
    state = SimpleNamespace(now=1000.0)
    state.monotonic = lambda: state.now
    for module in (budget_module, blocks_module, rounds_module):
        monkeypatch.setattr(module, "time", state)
    watch = SimpleNamespace(conditions=lambda seconds: Conditions(0.0, 0.0, 0.0))
    monkeypatch.setattr(blocks_module, "LoadMonitor", lambda: watch)
    return state


class Machine:
    """Arms that take time on the test's clock: to start, for each step, and to end.

    A step varies by `noise`, and those of a start by `start_noise`, both of an arm's own.
    """

    def pace(self, configs):
        return PACE

    def __init__(self, clock, start_seconds=0.3, end_seconds=0.1, noise=0.02, start_noise=0.006, **step_seconds):
        self._clock, self._start_seconds, self._end_seconds = clock, start_seconds, end_seconds
        self._noise, self._start_noise, self.step_seconds = noise, start_noise, step_seconds
        self._randomly = random.Random(3)

    def seconds(self, deviation):
        return math.exp(self._randomly.gauss(0, deviation))

    @contextlib.contextmanager
    def running(self, variants):
        self._clock.now += self._start_seconds
        self._usual = {name: self.step_seconds[name] * self.seconds(self._start_noise) for name in variants}
        yield self
        self._clock.now += self._end_seconds

    def run_turn(self, name, turn):
        steps = [self._usual[name] * self.seconds(self._noise) for _ in range(turn.steps)]
        self._clock.now += sum(steps)
        return steps[turn.untimed_steps :]

    def end(self, timed):
        return {name: Arm(64, one.turns, one.first_steps, {}, 0.0, [Process(1)]) for name, one in timed.items()}


def measured(clock, machine, *overrides, reserved=0.0):
    """The blocks of a job on this machine, and how long it took."""
    config = tiny("measurement.warmup_steps=10", *overrides)
    paired = config.measurement.baseline == "paired"
    variants = {"candidate": config} | ({"baseline": config.baseline()} if paired else {})
    trainings = SimpleNamespace(reserve_seconds=lambda steps: reserved)
    job = Budget(config, "baseline" if paired else None, "candidate", trainings)
    started, shares = clock.now, []
    blocks = list(
        run_blocks(
            machine,
            lambda blocks: variants,
            job,
            on_progress=lambda text, done: shares.append(done),
        )
    )
    assert shares == sorted(shares)
    assert 0 <= shares[0] <= shares[-1] <= 1
    return blocks, clock.now - started


@pytest.mark.parametrize("precision", [0.02, 1e-9])
@pytest.mark.parametrize("seconds", [4, 9, 20])
@pytest.mark.parametrize("step", [0.0003, 0.01, 0.1])
@pytest.mark.parametrize("start", [0.1, 0.5])
def test_a_job_takes_as_long_as_it_may_at_most(clock, step, seconds, precision, start):
    machine = Machine(clock, start, baseline=step, candidate=step / 1.7)
    settings = [f"measurement.precision={precision}", f"measurement.max_seconds={seconds}", "measurement.repeats=2"]
    blocks, took = measured(clock, machine, *settings)
    assert len(blocks) >= (1 if (step, seconds) == (0.1, 4) else 2)  # where starts and warm-ups take most of the time
    assert took <= 1.1 * seconds
    if precision < 1e-6:  # which is never reached
        assert took >= 0.8 * seconds


@pytest.mark.parametrize("baseline", ["paired", "none"])
def test_expensive_starts_give_one_long_block(clock, baseline):
    """As where a script imports much on a busy machine."""
    settings = [*ADAPTIVE, f"{MAX}=30", f"measurement.baseline={baseline}"]
    blocks, took = measured(clock, Machine(clock, 16.0, baseline=0.04, candidate=0.04), *settings)
    assert len(blocks) == (1 if baseline == "paired" else 2)  # without a pair, as many as asked for
    assert took >= 0.8 * 30
    if baseline == "paired":
        assert took <= 1.1 * 30
        assert len(blocks[0].arms["baseline"].turns) > 50


def test_without_a_limit_a_job_of_short_steps_takes_the_usual_time(clock):
    settings = ["measurement.max_seconds=null", "measurement.precision=1e-9", "measurement.repeats=2"]
    _, took = measured(clock, Machine(clock, baseline=0.001, candidate=0.001), *settings)
    assert took == pytest.approx(SHORT_SECONDS, rel=0.2)


def test_long_steps_extend_the_default_time_limit(clock):
    settings = ["measurement.max_seconds=null", "measurement.precision=1e-9", "measurement.repeats=2"]
    short, *long = (
        measured(clock, Machine(clock, baseline=step, candidate=step), *settings)[1] for step in (0.001, 0.4, 1.0, 2.0)
    )
    assert short <= 1.1 * SHORT_SECONDS
    assert all(1.5 * SHORT_SECONDS < took <= 1.2 * LONG_SECONDS for took in long)


def test_a_ratio_that_is_known_well_enough_ends_the_job(clock):
    settings = ["measurement.max_seconds=600", "measurement.precision=0.03", "measurement.repeats=2"]
    blocks, took = measured(clock, Machine(clock, baseline=0.001, candidate=0.001), *settings)
    assert len(blocks) >= 2
    assert took < 60


def test_a_more_precise_ratio_takes_more_blocks(clock):
    numbers = []
    for precision in (0.05, 0.01, 0.005):
        settings = [f"measurement.precision={precision}", "measurement.max_seconds=600", "measurement.repeats=2"]
        blocks, _ = measured(clock, Machine(clock, baseline=0.001, candidate=0.001), *settings)
        numbers.append(len(blocks))
    assert numbers[0] < numbers[1] < numbers[2]


@pytest.mark.parametrize("reserved", [0.0, 3.0])
def test_time_for_what_comes_after_the_blocks_is_left(clock, reserved):
    settings = [*ADAPTIVE, "measurement.max_seconds=10", "measurement.precision=1e-9"]
    _, took = measured(clock, Machine(clock, baseline=0.001, candidate=0.001), *settings, reserved=reserved)
    assert 0.8 * (10 - reserved) <= took <= 10 - reserved


def test_without_a_paired_baseline_as_many_blocks_are_made_as_asked_for_within_the_time(clock):
    settings = ["measurement.baseline=none", "measurement.repeats=3", "measurement.max_seconds=9"]
    blocks, took = measured(clock, Machine(clock, candidate=0.001), *settings, "measurement.precision=1e-9")
    assert len(blocks) == 3
    assert 0.8 * 9 <= took <= 9
    lengths = [block.arms["candidate"].all_step_seconds.sum() for block in blocks]
    assert max(lengths) < 1.3 * min(lengths)  # the time is shared


def test_excluded_time_is_not_the_jobs(clock):
    config = tiny("measurement.max_seconds=10")
    job = Budget(config, None, "candidate")
    clock.now += 5.0
    job.exclude_seconds(5.0)
    assert job.done_fraction == 0
    clock.now += 5.0
    assert job.done_fraction == 0.5


def test_a_fixed_number_of_blocks_shares_the_time(clock):
    machine = Machine(clock, start_seconds=1.0, baseline=0.1, candidate=0.1)
    blocks, _ = measured(clock, machine, "measurement.precision=null", "measurement.repeats=4", f"{MAX}=9")
    rounds = [len(block.arms["candidate"].turns) for block in blocks]
    assert len(rounds) == 4
    assert max(rounds) <= 2 * min(rounds)


def test_steps_too_long_for_the_time_are_named_with_what_they_need(clock):
    settings = [*ADAPTIVE, "measurement.max_seconds=20"]
    blocks, took = measured(clock, Machine(clock, baseline=5.0, candidate=4.0), *settings)
    assert len(blocks) == 1
    config = tiny(*settings)
    (named,) = _precision_warnings(config, blocks, compare([blocks], "baseline", "candidate"))
    assert named.kind == "few turns"
    (seconds,) = map(int, re.findall(r"set measurement.max_seconds=(\d+) or more", named.advice))
    assert seconds > took
    blocks, took = measured(clock, Machine(clock, baseline=5.0, candidate=4.0), *settings[:-1], f"{MAX}={seconds}")
    assert took <= 1.1 * seconds
    assert not any(
        warning.kind == "few turns"
        for warning in _precision_warnings(config, blocks, compare([blocks], "baseline", "candidate"))
    )


def block_length(clock, start_seconds, noise):
    """The seconds of the rounds of the first block of a long job, and that block."""
    config = tiny(*ADAPTIVE, f"{MAX}=600", "measurement.precision=1e-9", "measurement.warmup_steps=10")
    job = Budget(config, "baseline", "candidate")
    machine = Machine(clock, start_seconds, noise=noise, start_noise=0.0, baseline=0.001, candidate=0.001)
    variants = {"candidate": config, "baseline": config.baseline()}
    block = next(run_blocks(machine, lambda blocks: variants, job))
    return sum(arm.all_step_seconds.sum() for arm in block.arms.values()), block


@pytest.mark.parametrize("start_seconds", [0.2, 1.0, 4.0])
@pytest.mark.parametrize("noise", [0.1, 0.4])
def test_a_block_is_as_long_as_pays_beside_another_start(clock, start_seconds, noise):
    """Kalibera and Jones 2013: the root of the cost of a start times the variances' quotient."""
    seconds, block = block_length(clock, start_seconds, noise)
    baseline, candidate = (block.arms[name].all_step_seconds for name in ("baseline", "candidate"))
    a_second = sum((steps.std() / steps.mean()) ** 2 * steps.mean() * 2 for steps in (baseline, candidate))
    cost = start_seconds + END_SECONDS + 0.02  # and the warm-up's steps
    best = math.sqrt(cost * a_second) / BLOCK_STD
    assert best / 2 <= seconds <= 2 * best + 1  # noise of the estimate, and it looks every some rounds only


def test_a_block_is_longer_where_starts_are_dear_or_steps_vary(clock):
    short, costly, noisy = (
        np.mean([block_length(clock, start, noise)[0] for _ in range(5)])
        for start, noise in ((0.2, 0.1), (5.0, 0.1), (0.2, 0.5))
    )
    assert costly > 1.5 * short
    assert noisy > 1.5 * short
