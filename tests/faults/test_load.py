"""Long use: nothing grows with the number of launches and jobs. `python -m benchmarks endurance` does it in earnest."""

from __future__ import annotations

import pytest
from basics import TINY

import dpexp
from testbed.endurance import Census, soak


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1])
def test_launches_with_random_kills_leave_nothing(seed):
    soak(3, seed)  # what is made once is there
    before = Census.take()
    outcomes, _ = soak(25, seed)
    after = Census.take()
    assert sum(outcomes.values()) == 25
    assert set(outcomes) == {"trained", "failed, as killed"}
    assert (after.descriptors, after.threads, after.processes) == (before.descriptors, before.threads, before.processes)
    assert after.shared_names == before.shared_names


@pytest.mark.slow
def test_jobs_of_a_sweep_leave_nothing(tmp_path):
    dpexp.sweep(*TINY, "seed=1", folder=tmp_path / "first")  # what is made once is there
    before = Census.take()
    table = dpexp.sweep(*TINY, "seed=1,2,3,4", folder=tmp_path / "second")
    assert list(table.status) == ["ok"] * 4
    after = Census.take()
    assert (after.descriptors, after.threads, after.processes) == (before.descriptors, before.threads, before.processes)
    assert after.shared_names == before.shared_names
