"""What the pictures show."""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd
import pytest
from matplotlib.figure import Figure
from results_helpers import in_bursts, result, write_sweep

from dpexp.analysis.table import aggregate
from dpexp.report.panels import Panels, shares, value_range


def rows(computation, balance, communication):
    factors = {"load_balance": balance, "communication_efficiency": communication, "computation_scaling": computation}
    return pd.DataFrame([factors])


def test_what_is_reached_and_what_is_lost_add_up_to_the_ideal():
    found = shares(rows(0.9, 0.8, 0.7))
    assert found["reached"][0] == pytest.approx(0.9 * 0.8 * 0.7)
    assert sum(found.values())[0] == pytest.approx(1)


def test_computation_that_gets_faster_loses_nothing():
    found = shares(rows(1.2, 1.0, 1.0))
    assert found["lost to slower computation"][0] == 0
    assert found["reached"][0] == pytest.approx(1.2)


def test_a_bar_names_only_shares_with_room_for_a_number(tmp_path):
    table = aggregate([write_sweep(tmp_path, result("workers=2", seconds=[1, 1], baseline=[1.8, 1.8]))]).table
    table = table.assign(**rows(0.98, 0.97, 0.8).iloc[0])
    axes = Figure().subplots()
    Panels(table).losses(axes, table)
    assert [text.get_text() for text in axes.texts if text.get_text()] == ["76 %", "19 %"]


def test_both_speedups_are_drawn_where_others_slowed_the_machine_down(tmp_path):
    one = result("workers=2", seconds=[1, 1, 1], baseline=[1.8, 1.8, 1.8])
    names = []
    for number, blocks in enumerate((one.blocks, in_bursts(one.blocks, "candidate"))):
        table = aggregate([write_sweep(tmp_path / str(number), replace(one, blocks=blocks))]).table
        axes = Figure().subplots()
        Panels(table).speedup_by_workers(axes, table)
        names.append(axes.get_legend_handles_labels()[1])
    best = "best sequential process: 1.00"
    assert names == [
        ["10,000 samples", "ideal", best],
        ["10,000 samples", "ideal", best, "overall speedup, 10,000 samples"],
    ]


def test_the_best_sequential_process_is_that_of_rows_without_oversubscription(tmp_path):
    jobs = [result(f"workers={workers}", seconds=[1, 1], baseline=[1.8, 1.8]) for workers in (2, 4)]
    table = aggregate([write_sweep(tmp_path, *jobs)]).table.sort_values("workers")
    table = table.assign(
        oversubscribed=[False, True], overall_best_sequential_speedup=table.overall_speedup / [1.5, 0.5]
    )
    axes = Figure().subplots()
    Panels(table).speedup_by_workers(axes, table)
    assert "best sequential process: 1.50" in axes.get_legend_handles_labels()[1]


def test_a_panel_has_room_for_every_interval():
    table = pd.DataFrame({"speedup": [1.0, 2.0], "speedup_low": [0.5, math.nan], "speedup_high": [3.0, math.nan]})
    assert value_range(table, "speedup") == (0.5, 3.0)
