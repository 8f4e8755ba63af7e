"""Intervals cover the truth as often as they say, on timings as machines give them. Simulated: no clock."""

from __future__ import annotations

import numpy as np
import pytest

from dpexp.analysis.stats import paired_ratio, pairs_needed

TRIALS, BLOCKS, SPEEDUP = 2000, 5, 1.7

# Noise of one training's log time.
NOISE = {
    "normal": lambda generator, size: generator.normal(0, 0.03, size),
    "heavy tails": lambda generator, size: 0.02 * generator.standard_t(3, size),
    "outliers": lambda generator, size: (
        generator.normal(0, 0.03, size) + (generator.random(size) < 0.05) * generator.exponential(0.3, size)
    ),
    "skewed": lambda generator, size: generator.exponential(0.05, size),
}


def timings(generator, noise, blocks, speedup):
    """Seconds of baseline and candidate by block, on a machine whose speed wanders by some percent a block."""
    drift = np.cumsum(generator.normal(0, 0.05, blocks))
    baseline = np.log(3.0) + drift + noise(generator, blocks)
    candidate = np.log(3.0 / speedup) + drift + noise(generator, blocks)
    return np.exp(baseline), np.exp(candidate)


@pytest.mark.parametrize("noise", NOISE.values(), ids=NOISE.keys())
def test_the_interval_of_five_blocks_covers_the_truth(noise):
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(TRIALS):
        estimate = paired_ratio(*timings(generator, noise, BLOCKS, SPEEDUP))
        covered += estimate.low <= SPEEDUP <= estimate.high
    assert 0.93 <= covered / TRIALS <= 0.97


@pytest.mark.parametrize("noise", NOISE.values(), ids=NOISE.keys())
def test_two_identical_candidates_are_seldom_called_different(noise):
    generator = np.random.default_rng(1)
    different = 0
    for _ in range(TRIALS):
        estimate = paired_ratio(*timings(generator, noise, BLOCKS, 1.0))
        different += not estimate.low <= 1 <= estimate.high
    assert different / TRIALS <= 0.05


def adaptive(generator, noise, precision, at_most):
    """As measurement does: five blocks say how many it takes."""
    baseline, candidate = timings(generator, noise, at_most, SPEEDUP)
    count = min(at_most, pairs_needed(baseline[:BLOCKS], candidate[:BLOCKS], precision))
    return paired_ratio(baseline[:count], candidate[:count], pilot=BLOCKS), count


@pytest.mark.parametrize("at_most", [12, 200], ids=["cut short by max_seconds", "as many as needed"])
@pytest.mark.parametrize("noise", NOISE.values(), ids=NOISE.keys())
def test_the_interval_covers_the_truth_although_its_width_decided_when_to_stop(noise, at_most):
    generator = np.random.default_rng(2)
    covered = 0
    for _ in range(TRIALS):
        estimate, _ = adaptive(generator, noise, 0.05, at_most)
        covered += estimate.low <= SPEEDUP <= estimate.high
    assert 0.93 <= covered / TRIALS <= 0.97


def test_looking_after_every_block_would_cover_too_seldom():
    generator = np.random.default_rng(4)
    covered = 0
    for _ in range(TRIALS):
        baseline, candidate = timings(generator, NOISE["normal"], 200, SPEEDUP)
        count = 3
        while (estimate := paired_ratio(baseline[:count], candidate[:count])).high / estimate.value > 1.05:
            count += 1
        covered += estimate.low <= SPEEDUP <= estimate.high
    assert covered / TRIALS < 0.93


def test_as_many_blocks_as_needed_give_about_the_precision():
    generator = np.random.default_rng(3)
    estimates = [adaptive(generator, NOISE["normal"], 0.05, 10_000)[0] for _ in range(200)]
    assert np.median([estimate.high / estimate.value for estimate in estimates]) < 1.055
