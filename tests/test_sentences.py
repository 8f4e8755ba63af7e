"""What the blocks say beyond time and speedup, in the table and in words."""

from __future__ import annotations

from dataclasses import replace

import pytest
from results_helpers import MACHINE, QUIET, TIMES, result, training, with_phases, write_sweep
from test_drawing import PROJECTED

from law_helpers import simulated
from dpexp.analysis.row import Row
from dpexp.analysis.table import aggregate
from dpexp.decision.contest import contest
from dpexp.decision.verdict import Verdict
from dpexp.report.sentences import _outlook, answers, reasons, targets, warnings

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
        return replace(block, best_sequential=best)

    found = summary(tmp_path, change=faster)
    row = found.rows[0]
    assert (row.best_sequential_threads, row.best_sequential_speedup.value) == (2, pytest.approx(0.8))
    verdict, answer, _ = answers(found)
    assert verdict.startswith("Fastest for 5,000 samples: one process with 2 threads, with a probability of more than")
    assert "1.20 times (1.20 to 1.20) as fast as one sequential process with 1 thread" in answer
    assert "0.80 times (0.80 to 0.80) as fast as the best sequential process, with 2 threads" in answer


def test_where_the_best_has_the_same_threads_both_speedups_are_equal(tmp_path):
    row = summary(tmp_path).rows[0]
    assert row.best_sequential_speedup == row.speedup


def test_a_measurement_that_did_not_look_for_the_best_does_not_claim_it(tmp_path):
    assert not summary(tmp_path, "measurement.best_sequential=false").rows[0].best_sequential_speedup.known


def test_independent_copies_show_the_limit_of_the_machine(tmp_path):
    def measured(block):
        return replace(explained(block), independent=training(0.6))

    found = summary(tmp_path, change=measured)
    assert found.rows[0].independent_speedup.value == pytest.approx(2.0)
    assert "as independent processes, which exchange nothing, they reach 2.00 (2.00 to 2.00)" in reasons(found)[1]


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
    assert row.target_speedup == pytest.approx(row.target_throughput_ratio * row.target_samples_ratio)
    assert "90 % accuracy after 1.00 s, 0.80 times as fast as the baseline" in targets(found)[0]


def test_a_target_that_was_not_reached_is_told(tmp_path):
    found = summary(tmp_path, "target_accuracy=0.95", change=learning)
    assert "the median seed did not reach 95 % accuracy in 4 epochs; increase epochs." in targets(found)[0]


def test_seeds_that_differ_are_averaged(tmp_path):
    accuracies = iter([0.1, 0.6, 0.8])

    def learned(block):
        accuracy = next(accuracies)
        return replace(block, candidate=reaching(training(1.0, loss=accuracy), 0.0, 0.0, 0.0, accuracy))

    row = summary(tmp_path, "target_accuracy=0.9", change=learned).rows[0]
    assert (row.test_accuracy, row.train_loss) == (pytest.approx(0.7), pytest.approx(0.7))  # of the two kept blocks


def busy(cores):
    return lambda block: replace(block, conditions=replace(QUIET, other_cores=cores))


def test_a_kind_of_warning_is_told_once_for_its_worst_row(tmp_path):
    times = {"seconds": [1.0] * 3, "baseline": [1.2] * 3}
    jobs = [
        replace(job, blocks=[busy(cores)(block) for block in job.blocks])
        for cores, job in ((0.3, result(*TWO, "workers=1", **times)), (0.5, result(*TWO, **times)))
    ]
    (line,) = warnings(aggregate([write_sweep(tmp_path, *jobs)]))
    assert line == (
        "other programs used up to 0.5 of 2 cores (2 workers, 5,000 samples and 1 more row): stop them while measuring"
    )


def test_a_warning_about_the_only_row_does_not_name_it(tmp_path):
    assert "workers" not in warnings(summary(tmp_path, change=busy(0.5)))[0]


def test_the_worst_quota_is_the_smallest(tmp_path):
    jobs = [
        result(*TWO, f"data.size={size}", seconds=[1.0] * 3, baseline=[1.2] * 3, machine=machine)
        for size, machine in (
            (5000, replace(MACHINE, cgroup_cpu_quota=1.9)),
            (6000, replace(MACHINE, cgroup_cpu_quota=0.5)),
        )
    ]
    (line,) = warnings(aggregate([write_sweep(tmp_path, *jobs)]))
    assert line.startswith("the cgroup allows 0.5 CPUs for 2 threads (2 workers, 6,000 samples and 1 more row)")


def test_more_workers_are_projected_where_no_law_can_be_fitted():
    found = Verdict(None, "no law of scaling is fitted: too few", PROJECTED)
    (line,) = _outlook(found, Row("ok", threads_per_worker=2))
    assert line == (
        "More workers (projected, not measured): 8 workers, on a machine with 16 cores like these, would train 4.0 to "
        "6.0 times as fast as one sequential process. The largest loss would be exchanging within a host. No law of "
        "scaling is fitted: too few."
    )


def test_a_law_of_scaling_is_told_with_how_well_it_predicts():
    name = "Amdahl's law"
    scaling = contest(simulated(name, noise=0.002))
    (line,) = _outlook(Verdict(None, scaling, PROJECTED), Row("ok"))
    assert line.startswith("More workers (by a law of scaling, not measured): 64 workers would train 18.")
    assert "The law is Amdahl's law (serial share 0.0" in line
    assert "misses that one by 0." in line


def test_where_nothing_can_be_projected_the_reason_is_told():
    (line,) = _outlook(Verdict(None, "no law of scaling is fitted: too few", None), Row("ok"))
    assert line == "More workers: nothing is projected; no law of scaling is fitted: too few."
