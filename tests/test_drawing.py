"""What the pictures of the outlook and of the losses show."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from matplotlib.figure import Figure

from law_helpers import simulated
from dpexp.analysis.intervals import Estimate
from dpexp.decision.contest import contest
from dpexp.decision.projection import LOCAL, Projection
from dpexp.decision.verdict import Verdict
from dpexp.drawing import losses, outlook

PROJECTED = Projection(8, 1, Estimate(5.0, 4.0, 6.0), 1.0, {LOCAL: 0.1})


def row(computation, balance, communication, workers=2):
    factors = {"load_balance": balance, "communication_efficiency": communication, "computation_scaling": computation}
    return pd.Series({"workers": workers} | factors)


def test_what_is_reached_and_what_is_lost_add_up_to_the_ideal():
    shares = losses.shares(row(0.9, 0.8, 0.7))
    assert shares["reached"] == pytest.approx(0.9 * 0.8 * 0.7)
    assert sum(shares.values()) == pytest.approx(1)


def test_computation_that_gets_faster_loses_nothing():
    shares = losses.shares(row(1.2, 1.0, 1.0))
    assert shares["lost in slower computation"] == 0
    assert shares["reached"] == pytest.approx(1.2)


def test_a_bar_names_only_shares_with_room_for_a_number():
    axes = Figure().subplots()
    losses.paint(axes, pd.DataFrame([row(0.98, 0.97, 0.8)]), [2])
    assert [text.get_text() for text in axes.texts] == ["76 %", "19 %"]


def test_a_projection_is_labelled_as_one():
    axes = Figure().subplots()
    outlook.paint(axes, Verdict(None, "too few", PROJECTED))
    assert [text.get_text() for text in axes.texts] == ["4.0 to 6.0\nprojected, on\nenough cores"]
    assert outlook.reach(Verdict(None, "too few", PROJECTED)) == (8, 6.0)


def test_a_law_is_drawn_with_its_band_to_twice_the_measured_workers():
    name = "Amdahl's law"
    verdict = Verdict(None, contest(simulated(name)), PROJECTED)
    axes = Figure().subplots()
    outlook.paint(axes, verdict)
    assert sorted(axes.get_legend_handles_labels()[1]) == ["95 % band", name]
    (line,) = axes.lines
    assert max(line.get_xdata()) == pytest.approx(64)
    assert outlook.reach(verdict)[0] == 64


def test_without_either_nothing_is_drawn():
    axes = Figure().subplots()
    outlook.paint(axes, Verdict(None, "too few", None))
    assert not axes.has_data()
    assert math.prod(outlook.reach(None)) == 1
