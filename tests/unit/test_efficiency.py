"""Properties of the factors of efficiency."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dpexp.analysis.efficiency import efficiency_factors

seconds = st.floats(1e-3, 1e3)
workers = st.lists(
    st.fixed_dictionaries(dict.fromkeys(("data", "compute", "wait", "communicate", "update"), seconds)),
    min_size=1,
    max_size=5,
)


def whole(own):
    return max(sum(worker.values()) for worker in own)


@given(workers, workers)
def test_parallel_efficiency_is_load_balance_times_communication_efficiency(own, alone):
    factors = efficiency_factors(whole(own), own, alone, 1.0)
    assert factors["parallel_efficiency"] == pytest.approx(
        factors["load_balance"] * factors["communication_efficiency"]
    )


@given(workers)
def test_no_factor_but_computation_scaling_exceeds_one(own):
    factors = efficiency_factors(whole(own), own, [], 1.0)
    for factor in (factors["parallel_efficiency"], factors["load_balance"], factors["communication_efficiency"]):
        assert 0 < factor <= 1 + 1e-12


@given(workers, workers, st.floats(1, 8))
def test_the_product_is_the_efficiency_in_useful_time(own, alone, work_ratio):
    factors = efficiency_factors(whole(own), own, alone, work_ratio)
    useful_alone = sum(worker["data"] + worker["compute"] + worker["update"] for worker in alone)
    efficiency = useful_alone * work_ratio / (whole(own) * len(own))
    assert factors["parallel_efficiency"] * factors["computation_scaling"] == pytest.approx(efficiency)


@given(workers, seconds)
def test_waiting_is_load_balance_and_nothing_else(own, more):
    before = efficiency_factors(whole(own), own, own, 1.0)
    waiting = [{**worker, "wait": worker["wait"] + more} for worker in own]
    after = efficiency_factors(whole(own) + more, waiting, own, 1.0)
    assume(before["load_balance"] > 1e-3)
    assert after["load_balance"] < before["load_balance"]
    assert after["communication_efficiency"] >= before["communication_efficiency"] - 1e-12
    assert after["computation_scaling"] == before["computation_scaling"]


@given(workers, seconds)
def test_communicating_is_communication_efficiency_and_nothing_else(own, more):
    before = efficiency_factors(whole(own), own, own, 1.0)
    after = efficiency_factors(
        whole(own) + more, [{**w, "communicate": w["communicate"] + more} for w in own], own, 1.0
    )
    assert after["communication_efficiency"] < before["communication_efficiency"]
    assert after["load_balance"] == before["load_balance"]
    assert after["computation_scaling"] == before["computation_scaling"]


def test_where_waiting_is_unknown_its_factors_are():
    own = [{"data": 1.0, "compute": 5.0, "communicate": 3.0, "update": 1.0}]
    factors = efficiency_factors(10.0, own, own, 1.0)
    assert math.isnan(factors["load_balance"])
    assert math.isnan(factors["communication_efficiency"])
    assert factors["parallel_efficiency"] == pytest.approx(0.7)


def test_without_recorded_phases_there_is_no_tree():
    assert efficiency_factors(1.0, [], [], 1.0) == {}
