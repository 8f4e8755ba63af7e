"""The one estimate: what rounds tell, what blocks tell, what is known from elsewhere, and how they add up."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from results_helpers import QUIET, arm_of

from dpexp.analysis.ratio_estimate import (
    BLOCK_STD,
    COMMAND_STD,
    PRIOR_DOF,
    SINGLE_ROUND_STD,
    LogEstimate,
    compare,
    estimate_log_mean,
    estimate_turns_ratio,
    find_spread_ratio,
    pool_blocks,
    pool_jobs,
    variance_per_step,
)
from dpexp.results.schema import Block

seconds = st.floats(1e-3, 1e3)
turns = st.lists(st.tuples(seconds, seconds), min_size=2, max_size=40)


def exact(log, steps=1000.0):
    """A ratio whose rounds don't vary."""
    return LogEstimate(log, np.zeros(10), steps, 10)


@given(turns)
def test_the_inverse_ratio_has_the_inverse_log_and_the_same_variance(pairs):
    over, of = ([[one] for one in side] for side in zip(*pairs, strict=True))
    one, other = estimate_turns_ratio(over, of), estimate_turns_ratio(of, over)
    assert one.log == pytest.approx(-other.log)
    assert one.variance == pytest.approx(other.variance)


@given(turns, st.floats(0.5, 2))
def test_a_drift_that_hits_both_arms_of_a_round_alike_changes_little(pairs, factor):
    """Of equal steps it changes nothing."""
    steady = [[1.0], [2.0]]
    drift = [factor**at for at in range(5)]
    found = estimate_turns_ratio([[steady[0][0] * by] for by in drift], [[steady[1][0] * by] for by in drift])
    assert found.log == pytest.approx(math.log(0.5))
    assert found.variance == pytest.approx(0, abs=1e-12)


def test_the_ratio_is_of_seconds_a_sample():
    arms = {"over": arm_of([[1.0, 1.0]] * 3, samples_per_step=64), "of": arm_of([[1.5]] * 3, samples_per_step=128)}
    found = compare([[Block(arms, QUIET, 1.0)]], "over", "of")
    assert found.overall.value == pytest.approx((1 / 64) / (1.5 / 128))


def test_only_steps_up_to_the_limits_count():
    over, of = [[1.0, 9.0], [1.0, 1.0]], [[2.0, 2.0], [2.0, 7.0]]
    assert estimate_turns_ratio(over, of, (1.15, 2.3)).log == pytest.approx(math.log(0.5))
    assert estimate_turns_ratio(over, of, (0.5, 2.3)) is None
    assert estimate_log_mean(over, 0.5) is None


def autocorrelated(generator, count, correlation, deviation):
    noise = generator.normal(0, 1, count)
    for at in range(1, count):
        noise[at] = correlation * noise[at - 1] + math.sqrt(1 - correlation**2) * noise[at]
    return deviation * noise


@pytest.mark.parametrize("correlation", [0.0, 0.8, 0.95])
def test_the_variance_respects_that_neighbouring_turns_are_alike(correlation):
    generator = np.random.default_rng(0)
    blocks = []
    for _ in range(400):
        sides = [np.exp(autocorrelated(generator, 80, correlation, 0.05))[:, None] for _ in range(2)]
        blocks.append(estimate_turns_ratio(*sides))
    true = np.var([block.log for block in blocks])
    told = variance_per_step(blocks)[0] / 80
    assert told == pytest.approx(true, rel=0.15)
    naive = 2 * 0.05**2 / 80
    assert true > 5 * naive or correlation == 0


def test_turns_that_are_alike_are_fewer_independent_ones():
    generator = np.random.default_rng(2)
    freedoms = {}
    for correlation in (0.0, 0.95):
        ones = [np.exp(autocorrelated(generator, 80, correlation, 0.05))[:, None] for _ in range(8)]
        _, freedoms[correlation] = variance_per_step(
            [estimate_turns_ratio(*pair) for pair in zip(ones[::2], ones[1::2], strict=True)]
        )
    assert freedoms[0.95] < 0.4 * freedoms[0.0]


@pytest.mark.parametrize("limits", [(1.5, 9.0), (math.inf, math.inf)])
def test_a_block_whose_steps_are_all_in_one_group_tells_no_variance(limits):
    over = [[1.0], [2.0], [2.0]] if limits[0] < 2 else [[1.0]]
    found = estimate_turns_ratio(over, [[1.0]] * len(over), limits)
    assert found.variance == pytest.approx(SINGLE_ROUND_STD**2)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_blocks_that_agree_are_believed_as_far_as_they_are_many(count):
    found = pool_blocks([exact(0.1)] * count)
    assert found.log == pytest.approx(0.1)
    moderated = PRIOR_DOF / (PRIOR_DOF + count - 1)
    assert found.variance == pytest.approx(moderated * BLOCK_STD**2 / count)
    assert found.dof == pytest.approx(PRIOR_DOF + count - 1)


def test_two_blocks_that_differ_widen_the_interval_but_not_25_fold():
    agreeing, differing = pool_blocks([exact(0.0)] * 2), pool_blocks([exact(-0.02), exact(0.02)])
    wider = differing.estimate().precision / agreeing.estimate().precision
    misfit = 2 * (0.02 / BLOCK_STD) ** 2
    assert wider == pytest.approx(math.sqrt((PRIOR_DOF + misfit) / PRIOR_DOF), rel=0.02)
    assert wider < 3


def test_other_jobs_of_a_sweep_tell_how_much_blocks_usually_differ():
    calm = [pool_blocks([exact(0.0)] * 3)] * 10
    restless = [pool_blocks([exact(-0.02), exact(0.0), exact(0.02)])] * 10
    assert find_spread_ratio([]) == 1
    assert find_spread_ratio(calm) < 0.3
    assert find_spread_ratio(restless) > 5
    one = [exact(0.0)] * 2
    widths = [pool_blocks(one, find_spread_ratio(jobs)).estimate().precision for jobs in (calm, [], restless)]
    assert widths == sorted(widths)


def test_blocks_weigh_by_their_steps_and_not_by_how_calm_they_were():
    """Else the calm blocks would count more than those that others slowed down, which is no mean of all time."""
    generator = np.random.default_rng(3)
    calm = estimate_turns_ratio(generator.normal(1.0, 0.001, (40, 1)), np.ones((40, 1)))
    slow = estimate_turns_ratio(generator.normal(1.5, 0.4, (40, 1)), np.ones((40, 1)))
    assert pool_blocks([calm, slow]).log == pytest.approx((calm.log + slow.log) / 2)
    short = estimate_turns_ratio(generator.normal(1.5, 0.4, (4, 1)), np.ones((4, 1)))
    assert pool_blocks([calm, short]).log < (calm.log + short.log) / 2


def test_pooled_commands_shrink_what_commands_differ_by():
    job = pool_blocks([exact(0.0)] * 3)
    one, sixteen = (pool_jobs([job] * count, COMMAND_STD) for count in (1, 16))
    assert one.variance == pytest.approx(job.variance + COMMAND_STD**2)
    assert one.dof == job.dof
    assert sixteen.estimate().precision < one.estimate().precision / 4


def blocks(over, of, processes=1):
    turns = [[1.0, 1.001], [1.001, 1.0]] * 5
    arms = {
        "over": arm_of([[over * step for step in turn] for turn in turns]),
        "of": arm_of([[of * step for step in turn] for turn in turns], processes=processes),
    }
    return [Block(arms, QUIET, 1.0)] * 3


def test_commands_differ_where_several_cores_are_compared():
    one, two = (compare([blocks(1.8, 1.0, processes)], "over", "of").overall for processes in (1, 2))
    assert one.value == two.value == pytest.approx(1.8)
    assert two.precision > one.precision


def test_blocks_without_an_arm_are_not_compared():
    assert not compare([blocks(1, 1)], "over", "other").shown.is_known


def test_a_higher_level_gives_a_wider_interval():
    usual, surer = (compare([blocks(1, 1)], "over", "of", level=level).shown for level in (0.95, 0.999))
    assert surer.precision > 1.5 * usual.precision
