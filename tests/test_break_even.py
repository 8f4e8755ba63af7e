"""The break-even batch: found, measured, and refused where there is none."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dpexp.analysis.intervals import Estimate
from dpexp.break_even import Search, answer, crossing, main, search, with_batch

QUICK = (
    "data=synthetic data.size=200 model.hidden=[7] batch.size=24 strategy=ddp measurement.repeats=2 "
    "measurement.warmup=0 measurement.best_sequential=false measurement.precision=null measurement.max_seconds=0.3"
).split()


def known(value: float, share: float = 0.02) -> Estimate:
    return Estimate(value, value / (1 + share), value * (1 + share))


def test_it_lies_on_the_line_between_batches_on_both_sides():
    found = crossing({64: known(0.64), 256: known(2.56)})
    assert found.value == pytest.approx(100)
    assert found.low < 100 < found.high


def test_batches_far_away_do_not_count():
    near = {64: known(0.64), 128: known(1.28), 256: known(2.56)}
    far = near | {4: known(0.01), 8192: known(2.6)}
    assert crossing(far) == crossing(near)


@pytest.mark.parametrize("values", [(0.5, 0.9), (1.1, 1.9)])
def test_without_batches_on_both_sides_there_is_none(values):
    assert crossing(dict(zip((64, 256), map(known, values), strict=True))) is None


def test_its_interval_covers_the_true_batch():
    generator = np.random.default_rng(3)
    batches, truth, deviation = np.array([64, 256, 180]), 200.0, 0.03
    covered = 0
    for _ in range(200):
        logs = 0.5 * np.log(batches / truth) + generator.normal(0, deviation, 3)
        speedups = [Estimate(*np.exp([value, value - 1.96 * deviation, value + 1.96 * deviation])) for value in logs]
        if found := crossing(dict(zip(batches.tolist(), speedups, strict=True))):
            covered += found.low <= truth <= found.high
    assert 0.90 <= covered / 200 <= 0.99


def test_a_speedup_that_may_not_rise_gives_no_upper_end():
    assert crossing({64: known(0.99, 0.1), 256: known(1.01, 0.1)}).high == math.inf


def test_the_predicted_batch_is_measured():
    found = search(lambda batch: known(2 * batch / (batch + 300)), 16, most=4096)
    assert list(found.speedups)[:3] == [16, 64, 256]
    assert found.checked in found.speedups
    assert found.is_confirmed
    assert found.break_even.value == pytest.approx(300, rel=0.05)


def test_smaller_batches_are_tried_where_the_first_one_pays():
    found = search(lambda batch: known((batch / 30) ** 0.5), 1000, most=4096)
    assert found.break_even.value == pytest.approx(30, rel=0.05)


@pytest.mark.parametrize(("speedup", "word"), [(0.8, "below"), (1.5, "above")])
def test_where_there_is_none_the_answer_says_so(speedup, word):
    found = search(lambda batch: known(speedup), 64, most=1024)
    assert found.break_even is None
    assert f"the speedup of 2 workers is {word} 1 at all measured batches" in answer(2, found)


def test_a_point_that_bends_the_line_down_is_left_out():
    speedups = {64: known(0.98, 0.003), 256: known(0.90, 0.003), 1024: known(1.01, 0.2)}
    found = crossing(speedups)
    assert found.value == pytest.approx(crossing({64: speedups[64], 1024: speedups[1024]}).value)


def test_a_speedup_that_falls_with_the_batch_has_none():
    found = search(lambda batch: known(1.5 if batch < 100 else 0.5), 200, most=4096)
    assert found.break_even is None
    assert "no break-even batch found" in answer(2, found)


def test_a_vague_check_confirms_nothing():
    assert not Search({64: known(0.8), 128: known(1.0, 0.5), 256: known(1.25)}, checked=128).is_confirmed


def test_a_scripts_batch_may_exceed_the_samples_that_times_are_for():
    script = ["script.command='x {workers} {local_batch_size}'"]
    assert with_batch(script, 100_000).local_batch_size == 100_000


def test_the_answer_gives_the_interval_and_the_check():
    found = Search({64: known(0.8), 128: known(1.0), 256: known(1.25)}, checked=128)
    assert "from a local batch of 128 (124 to 133) on" in answer(2, found)
    assert "confirmed by measuring: the speedup at 128 is 1.00 (0.98 to 1.02)" in answer(2, found)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["workers=1"], "workers=1: there is nothing to compare with one process"),
        (["batch.scope=global"], "needs batch.scope=per_worker"),
        (["measurement.baseline=none"], "measurement.baseline=paired"),
        (["script.command=x {workers}"], "write {local_batch_size} instead of it"),
        (
            ["script.command=x {workers} {local_batch_size}", "script.baseline_command=y"],
            "script.baseline_command=y: its batch size is fixed",
        ),
        (["workers=two"], "workers"),
    ],
)
def test_what_cannot_be_searched_is_refused(capsys, overrides, said):
    assert main(overrides) == 2
    assert said in capsys.readouterr().err


def test_jobs_are_measured_and_kept(tmp_path, capsys):
    assert main([*QUICK, "--output", str(tmp_path)]) == 0
    assert "batch 24: speedup" in capsys.readouterr().out
    assert (tmp_path / "batch_24" / "result.json").exists()
