"""Properties of means, ratios and their intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpexp.analysis.intervals import geometric_mean, paired_ratio, unpaired_ratio

times = st.floats(1e-3, 1e3)
samples = st.lists(times, min_size=2, max_size=10)
pairs = st.lists(st.tuples(times, times), min_size=2, max_size=10)


@given(samples)
def test_the_interval_holds_the_mean(values):
    estimate = geometric_mean(values)
    assert estimate.low <= estimate.value <= estimate.high


@given(pairs, st.floats(0.1, 10))
def test_a_drift_that_hits_both_of_a_pair_changes_nothing(both, drift):
    numerators, denominators = zip(*both, strict=True)
    slower = [[value * drift**block for block, value in enumerate(values)] for values in (numerators, denominators)]
    before, after = paired_ratio(numerators, denominators), paired_ratio(*slower)
    assert after.value == pytest.approx(before.value, rel=1e-6)
    assert after.high == pytest.approx(before.high, rel=1e-4)


@given(pairs)
def test_the_inverse_ratio_has_the_inverse_interval(both):
    numerators, denominators = zip(*both, strict=True)
    for compare in (paired_ratio, unpaired_ratio):
        one, other = compare(numerators, denominators), compare(denominators, numerators)
        assert one.value * other.value == pytest.approx(1)
        assert math.log(one.low) == pytest.approx(-math.log(other.high), rel=1e-6, abs=1e-9)


@given(pairs)
def test_a_ratio_of_means_is_the_mean_of_ratios(both):
    numerators, denominators = zip(*both, strict=True)
    expected = geometric_mean(numerators).value / geometric_mean(denominators).value
    assert paired_ratio(numerators, denominators).value == pytest.approx(expected)
    assert unpaired_ratio(numerators, denominators).value == pytest.approx(expected)


def test_one_sample_has_no_interval():
    for estimate in (geometric_mean([2.0]), paired_ratio([2.0], [1.0]), unpaired_ratio([2.0], [1.0, 1.1])):
        assert math.isnan(estimate.low)
        assert math.isnan(estimate.high)


def test_the_interval_is_students():
    # Logs -0.1, 0, 0.1: standard error 0.1 / sqrt(3); t(0.975, 2) = 4.3027.
    estimate = geometric_mean(np.exp([-0.1, 0, 0.1]).tolist())
    assert math.log(estimate.high) == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-6)


def test_welchs_interval_agrees_with_scipys():
    from scipy.stats import ttest_ind

    one, other = [1.0, 1.2, 1.1, 1.4], [0.7, 0.6, 0.9]
    expected = ttest_ind(np.log(one), np.log(other), equal_var=False).confidence_interval(0.95)
    estimate = unpaired_ratio(one, other)
    assert math.log(estimate.low) == pytest.approx(expected.low)
    assert math.log(estimate.high) == pytest.approx(expected.high)


@pytest.mark.parametrize("compare", [paired_ratio, unpaired_ratio])
def test_the_interval_covers_the_truth_as_often_as_it_says(compare):
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        numerators, denominators = np.exp(generator.normal(0, 0.1, (2, 5)))
        estimate = compare(2 * numerators, denominators)
        covered += estimate.low <= 2 <= estimate.high
    assert 0.93 <= covered / 2000 <= 0.97
