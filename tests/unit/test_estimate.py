"""Properties of means and of their intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpexp.analysis.estimate import Estimate, geometric_mean, t_quantile

samples = st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=10)


@given(samples)
def test_the_interval_holds_the_mean(values):
    estimate = geometric_mean(values)
    assert estimate.low <= estimate.value <= estimate.high


@given(samples)
def test_the_inverse_has_the_inverse_interval(values):
    one, other = geometric_mean(values), geometric_mean([1 / value for value in values])
    assert one.value * other.value == pytest.approx(1)
    assert math.log(one.low) == pytest.approx(-math.log(other.high), rel=1e-6, abs=1e-9)


def test_one_sample_has_no_interval():
    estimate = geometric_mean([2.0])
    assert estimate.value == pytest.approx(2)
    assert math.isnan(estimate.low)
    assert math.isnan(estimate.high)


def test_the_interval_is_students():
    # Logs -0.1, 0, 0.1: standard error 0.1 / sqrt(3); t(0.975, 2) = 4.3027.
    estimate = geometric_mean(np.exp([-0.1, 0, 0.1]).tolist())
    assert math.log(estimate.high) == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-6)


def test_the_quantile_agrees_with_scipys_for_any_freedom():
    from scipy.stats import t

    for dof in (1.0, 6.5, 30.0):
        assert t_quantile(0.9, dof) == pytest.approx(t.ppf(0.95, dof))


def test_a_multiple_has_the_same_precision():
    estimate = Estimate(2.0, 1.6, 2.5)
    assert estimate.scaled(3) == Estimate(6.0, pytest.approx(4.8), 7.5)
    assert estimate.precision == estimate.scaled(3).precision == pytest.approx(0.25)
