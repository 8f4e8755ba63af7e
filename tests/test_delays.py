"""Whom the others wait for, in real trainings."""

from __future__ import annotations

import pytest

from benchmarks.delays import Case, measured

ONE_START = ("measurement.repeats=1", "measurement.warmup_steps=3")
LONG = 0.03  # seconds: what else goes on here is shorter


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        Case("script", 2, "backward", 1, LONG),
        Case("script", 2, "update", 0, LONG),
        Case("sync_dp", 2, "data", 0, LONG),
        Case("ddp", 2, "forward", 1, LONG),
    ],
    ids=lambda case: f"{case.kind}, {case.place}",
)
def test_a_delay_in_a_real_training_is_named(case):
    row = measured(case, 12, *ONE_START)
    assert case.is_right(row), (row.slow_rank, row.slow_phase, row.slow_seconds, row.slow_share)
