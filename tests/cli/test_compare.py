"""python -m dpexp.compare: two commands in turns."""

from __future__ import annotations

import re

import pytest
from basics import TINY
from results_helpers import QUIET, arm_of

from dpexp.compare import TOO_SLOW, main
from dpexp.results.schema import Block

QUICK = " ".join(text for text in TINY if "precision" not in text and "repeats" not in text)
BOTH = f"{QUICK} measurement.precision=null measurement.repeats=2 measurement.max_seconds=1"


def test_two_commands_are_measured_in_turns(capsys):
    assert main([f"{BOTH} strategy=emulated workers=3", f"{BOTH} strategy=sequential"]) == 0
    assert re.search(r": takes [\d.]+ \([\d.]+ to [\d.]+\) times as long \(", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("factor", "verdict", "status"),
    [(1.2, "slower", TOO_SLOW), (1.06, "slower", 0), (1.0, "no difference shown", 0), (0.8, "faster", 0)],
)
def test_it_fails_only_if_slower_by_more_than_asked(monkeypatch, capsys, factor, verdict, status):
    def measured(configs, *_, **__):
        turns = {"before": 0.01, "after": 0.01 * factor}
        arms = {name: arm_of([[seconds, 1.001 * seconds]] * 20) for name, seconds in turns.items()}
        return [Block(arms, QUIET, 1.0)] * 4

    monkeypatch.setattr("dpexp.measurement.job.measure_in_turns", measured)
    assert main(["workers=1", "workers=2", "--fail-if-slower", "10%"]) == status
    assert capsys.readouterr().out.endswith(f"times as long ({verdict})\n")


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ("model=cnn", "model=mlp", "model=cnn against mlp, "),
        ("model.hidden=[7]", "model.hidden=[8]", "[7] against [8]: both commands must train the same model"),
        (
            "model=custom model.builder=m:b",
            "model=custom model.builder=m:b +model.arguments.width=8",
            "model.arguments.width=none against 8",
        ),
        (
            "epochs=1",
            "epochs=2",
            "1 epoch of 10,000 samples against 2 epochs of 10,000 samples: both commands must train",
        ),
        (
            "workers=1 data.scope=per_worker epochs=2 data.size=1000",
            "workers=2 data.scope=per_worker epochs=1 data.size=1000",
            "2 epochs of 1,000 samples against 1 epoch of 2,000 samples",
        ),
        ("workers=2 epochs=1", "workers=2 script.command='t {workers}'", "a built-in training and a script"),
        ("workers=2", "nothere", "nothere: write settings, such as"),
        ("workers=2", "workers=two", "workers"),
        ("workers=1,2", "workers=2", "workers=1,2: give one value"),
        ("workers='2", "workers=2", "No closing quotation"),
    ],
)
def test_commands_that_cannot_be_compared_are_refused(capsys, first, second, said):
    assert main([first, second]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("share", ["50", "five%", "-1%"])
def test_an_invalid_percentage_is_refused(share):
    assert main(["a", "b", f"--fail-if-slower={share}"]) == 2
