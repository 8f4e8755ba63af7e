"""Intervals cover the truth as often as they say, on turns as shared machines give them. Simulated: no clock."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest

from dpexp.analysis.intervals import paired_ratio
from dpexp.analysis.undisturbed import seconds_by_turns

TRIALS, SPEEDUP, TURNS = 1000, 1.7, 20
FEWEST, MOST, PRECISION = 4, 12, 0.02


def none(generator, blocks):
    return np.zeros((blocks, TURNS))


def spells(generator, blocks, share, slower, length=15):
    """Slow spells of some turns; many hit no block at all, some a whole one."""
    hit = np.zeros(blocks * TURNS, dtype=bool)
    while hit.mean() < share:
        start = generator.integers(blocks * TURNS)
        hit[start : start + generator.integers(1, 2 * length)] = True
    return hit.reshape(blocks, TURNS) * slower


def bursts(generator, blocks):
    """Single turns that take up to twice as long."""
    return (generator.random((blocks, TURNS)) < 0.1) * generator.exponential(0.5, (blocks, TURNS))


def heavy_tails(generator, blocks):
    return 0.02 * generator.standard_t(3, (blocks, TURNS))


def autocorrelated(generator, blocks):
    noise = generator.normal(0, 0.02, (blocks, TURNS))
    for turn in range(1, TURNS):
        noise[:, turn] = 0.8 * noise[:, turn - 1] + 0.6 * noise[:, turn]
    return noise


# What happens to the turns of the baseline, and to those of the candidate, in log time.
MACHINES = {
    "quiet": (none, none),
    "candidate-only spells, a tenth of the time": (none, functools.partial(spells, share=0.1, slower=0.3)),
    "candidate-only spells, a quarter of the time": (none, functools.partial(spells, share=0.25, slower=0.6)),
    "spells of both": (
        functools.partial(spells, share=0.1, slower=0.2),
        functools.partial(spells, share=0.2, slower=0.4),
    ),
    "bursts": (bursts, bursts),
    "heavy tails": (heavy_tails, heavy_tails),
    "autocorrelated turns": (autocorrelated, autocorrelated),
}


def turns(generator, disturbance, blocks, seconds, drift):
    """Of each block's training its turns: each process has its own speed, each turn its own."""
    process = generator.normal(0, 0.01, (blocks, 1))
    logs = math.log(seconds / TURNS) + drift + process + generator.normal(0, 0.02, (blocks, TURNS))
    return np.exp(logs + disturbance(generator, blocks))


def trainings(generator, machine, blocks, speedup):
    """Turns of baseline and candidate, on a machine whose speed drifts."""
    drift = np.cumsum(generator.normal(0, 0.002, blocks * TURNS)).reshape(blocks, TURNS)
    baseline, candidate = MACHINES[machine]
    return turns(generator, baseline, blocks, 3.0, drift), turns(generator, candidate, blocks, 3.0 / speedup, drift)


def estimate(baseline, candidate, **options):
    """As analysis.speedup.ratio_of_times."""
    both = zip(seconds_by_turns(baseline), seconds_by_turns(candidate), strict=True)
    calm = [pair for pair in both if not any(map(math.isnan, pair))]
    if len(calm) < 2:
        calm = [(first.sum(), second.sum()) for first, second in zip(baseline, candidate, strict=True)]
    return paired_ratio([first for first, _ in calm], [second for _, second in calm], **options)


def stopped(baseline, candidate):
    """As measurement.blocks: more blocks until the interval is narrow."""
    for count in range(FEWEST, MOST + 1):
        found = estimate(baseline[:count], candidate[:count], stopped=True)
        if found.precision <= PRECISION:
            break
    return found


@pytest.mark.parametrize("machine", MACHINES)
def test_the_interval_covers_the_undisturbed_speedup_although_its_width_decided_when_to_stop(machine):
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(TRIALS):
        found = stopped(*trainings(generator, machine, MOST, SPEEDUP))
        covered += found.low <= SPEEDUP <= found.high
    assert 0.93 <= covered / TRIALS <= 0.975


def test_a_fixed_number_of_blocks_covers_as_often_as_it_says():
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(TRIALS):
        found = estimate(*trainings(generator, "quiet", 5, SPEEDUP))
        covered += found.low <= SPEEDUP <= found.high
    assert 0.93 <= covered / TRIALS <= 0.97


@pytest.mark.parametrize("machine", MACHINES)
def test_two_identical_trainings_are_seldom_called_different(machine):
    generator = np.random.default_rng(2)
    different = 0
    for _ in range(TRIALS):
        found = stopped(*trainings(generator, machine, MOST, 1.0))
        different += not found.low <= 1 <= found.high
    assert different / TRIALS <= 0.07


def test_stopping_without_a_wider_interval_would_cover_too_seldom():
    generator = np.random.default_rng(3)
    covered = 0
    for _ in range(2 * TRIALS):
        pairs = np.exp(generator.normal(math.log(SPEEDUP), 0.04, 40))
        count = FEWEST
        while (found := paired_ratio(pairs[:count], np.ones(count))).precision > PRECISION and count < 40:
            count += 1
        covered += found.low <= SPEEDUP <= found.high
    assert covered / (2 * TRIALS) < 0.93


def test_on_a_quiet_machine_few_blocks_give_the_precision():
    generator = np.random.default_rng(4)
    found = [stopped(*trainings(generator, "quiet", MOST, SPEEDUP)) for _ in range(200)]
    assert np.median([one.precision for one in found]) <= PRECISION
