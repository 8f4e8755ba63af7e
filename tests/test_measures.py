"""What the blocks say beyond time and speedup, in the table and in words."""

from __future__ import annotations

from dataclasses import replace

import pytest
from results_helpers import TIMES, result, training, with_phases, write_sweep

from dpexp.aggregate import aggregate
from dpexp.tables import advice, answers, reasons, targets

TWO = ["workers=2", "data.size=5000", "epochs=4"]


def phases(compute, wait, communicate, data=0.1, update=0.1):
    return {"data": data, "compute": compute, "wait": wait, "communicate": communicate, "update": update}


def explained(block):
    return replace(
        block,
        candidate=with_phases(training(1.0), phases(0.5, 0.2, 0.1), phases(0.7, 0.0, 0.1)),
        baseline=with_phases(training(1.2), phases(1.0, 0.0, 0.0)),
    )


def summary(tmp_path, *overrides, change=lambda block: block, seconds=(1.0, 1.0, 1.0), baseline=(1.2, 1.2, 1.2)):
    one = result(*TWO, *overrides, seconds=list(seconds), baseline=list(baseline))
    return aggregate([write_sweep(tmp_path, replace(one, blocks=[change(block) for block in one.blocks]))])


def test_the_efficiency_tree_is_in_the_table(tmp_path):
    row = summary(tmp_path, change=explained).table.iloc[0]
    assert row.parallel_efficiency == pytest.approx(1.6 / 2)
    assert row.load_balance == pytest.approx(1.6 / 1.8)
    assert row.communication_efficiency == pytest.approx(1.8 / 2)
    assert row.computation_scaling == pytest.approx(1.2 / 1.6)
    assert row.parallel_efficiency * row.computation_scaling == pytest.approx(row.efficiency)


def test_one_process_that_plays_all_workers_has_no_parallel_efficiency(tmp_path):
    def emulated(block):
        alone = with_phases(training(1.2), phases(1.0, 0.0, 0.0))
        return replace(block, candidate=with_phases(training(1.3), phases(1.0, 0.0, 0.1)), baseline=alone)

    found = summary(tmp_path, "strategy=emulated", change=emulated)
    assert found.table.load_balance.isna().all()
    assert found.table.compute_seconds.iloc[0] == pytest.approx(1.0)
    assert reasons(found) == []


def test_the_greatest_loss_is_named(tmp_path):
    (line,) = reasons(summary(tmp_path, change=explained))
    assert "load balance 89 % x communication efficiency 90 % x computation scaling 75 %" in line
    assert "Most is lost in the computation itself" in line


def test_the_best_sequential_process_is_named_beside_the_other_baseline(tmp_path):
    def faster(block):
        best = replace(training(0.8), workers=[replace(TIMES, threads=2)])
        return replace(block, best=best)

    found = summary(tmp_path, change=faster)
    row = found.table.iloc[0]
    assert (row.best_threads, row.gain) == (2, pytest.approx(0.8))
    assert "1.20 (1.20 to 1.20) times as fast as one sequential process, threads alike" in answers(found)[0]
    assert "0.80 (0.80 to 0.80) times as fast as the best one found, with 2 threads" in answers(found)[0]


def test_where_the_best_has_the_same_threads_both_speedups_are_one(tmp_path):
    row = summary(tmp_path).table.iloc[0]
    assert row.gain == row.speedup


def test_a_measurement_that_did_not_look_for_the_best_does_not_claim_it(tmp_path):
    assert summary(tmp_path, "measurement.best_sequential=false").table.gain.isna().all()


def test_counterfactuals_say_where_lost_speedup_went(tmp_path):
    def measured(block):
        return replace(block, unsynchronized=training(0.8), independent=training(0.6))

    found = summary(tmp_path, change=lambda block: measured(explained(block)))
    row = found.table.iloc[0]
    assert (row.independent_speedup, row.unsynchronized_speedup) == (pytest.approx(2.0), pytest.approx(1.5))
    line = reasons(found)[1]
    assert "2.00 (2.00 to 2.00) as independent processes" in line
    assert "1.50 (1.50 to 1.50) with the exchange" in line


def reaching(own, *accuracies):
    seconds = [own.seconds * (epoch + 1) / len(accuracies) for epoch in range(len(accuracies))]
    return replace(own, epoch_seconds=seconds, epoch_accuracies=list(accuracies))


def learning(block):
    return replace(
        block,
        candidate=reaching(training(1.0), 0.5, 0.8, 0.89, 0.91),
        baseline=reaching(training(1.6), 0.6, 0.92, 0.93, 0.93),
    )


def test_time_to_a_target_splits_exactly_into_throughput_and_samples(tmp_path):
    found = summary(tmp_path, "target_accuracy=0.9", change=learning)
    row = found.table.iloc[0]
    assert (row.target_seconds, row.baseline_target_seconds) == (pytest.approx(1.0), pytest.approx(0.8))
    assert row.target_samples_ratio == pytest.approx(0.5)
    assert row.target_speedup == pytest.approx(row.target_throughput_gain * row.target_samples_ratio)
    assert "90 % accuracy after 1.00 s, 0.80 times as soon as the baseline" in targets(found)[0]


def test_a_target_that_was_not_reached_is_told(tmp_path):
    found = summary(tmp_path, "target_accuracy=0.95", change=learning)
    assert "95 % accuracy was not reached in 4 epochs by the median seed: raise epochs." in targets(found)[0]


def test_doubts_are_told_once_a_kind_at_their_worst(tmp_path):
    less_short, short = [0.2, 0.2, 0.2], [0.1, 0.1, 0.1]
    first = result(*TWO, "workers=1", seconds=less_short, baseline=less_short)
    second = result(*TWO, seconds=short, baseline=short)
    found = aggregate([write_sweep(tmp_path, first, second)])
    assert advice(found) == ["timed for only 0.1 s: raise data.size or epochs until it takes 0.5 s"]
