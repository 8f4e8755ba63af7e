"""From results to one table: nothing hidden, nothing mixed."""

from __future__ import annotations

import math
import os
from dataclasses import replace

import pytest
from basics import composed
from results_helpers import MACHINE, arm, changed, result, write_sweep

from dpexp.analysis.table import aggregate
from dpexp.config.job import BASELINE, BEST_SEQUENTIAL
from dpexp.errors import ResultError
from dpexp.report.writer import write_report

FIXED_COLUMNS = (
    "status strategy workers threads_per_worker model data data_size batch_scope local_batch_size global_batch_size "
    "epochs updates repeats seconds seconds_low seconds_high samples_per_second speedup speedup_low speedup_high "
    "efficiency test_accuracy oversubscribed warnings job"
).split()


def row(folder, **wanted):
    table = aggregate([folder]).table
    for column, value in wanted.items():
        table = table[table[column] == value]
    assert len(table) == 1
    return table.iloc[0]


def test_the_columns_that_others_rely_on_are_there(tmp_path):
    write_sweep(tmp_path, result(seconds=[1, 1], baseline=[2, 2]))
    assert set(FIXED_COLUMNS) <= set(aggregate([tmp_path]).table.columns)


def test_speedup_is_over_the_baseline_of_the_same_blocks(tmp_path):
    write_sweep(tmp_path, result("workers=2", seconds=[1.0, 2.0], baseline=[1.5, 3.0]))
    found = row(tmp_path)
    assert found.speedup == pytest.approx(1.5)
    # The drift hit both alike; that starts differ by some tenths of a percent is known from elsewhere.
    assert (found.speedup_low, found.speedup_high) == pytest.approx((1.5, 1.5), rel=0.02)
    assert found.efficiency == pytest.approx(0.75)
    assert (found.repeats, found.test_accuracy, found.baseline_test_accuracy) == (2, 0.8, 0.9)


def test_throughput_counts_all_samples_of_all_epochs(tmp_path):
    write_sweep(tmp_path, result("data.size=1000", "epochs=3", seconds=[2, 2], baseline=[4, 4]))
    assert row(tmp_path).samples_per_second == pytest.approx(1500)


def test_without_any_baseline_no_speedup_is_claimed(tmp_path):
    write_sweep(tmp_path, result("workers=2", "measurement.baseline=none", seconds=[1, 1], baseline=None))
    found = row(tmp_path)
    assert math.isnan(found.speedup)


def test_weak_scaling_compares_throughput(tmp_path):
    overrides = ["data.scope=per_worker", "data.size=1000", "workers=2"]
    write_sweep(tmp_path, result(*overrides, seconds=[2, 2], baseline=[2, 2]))
    found = row(tmp_path)
    assert (found.data_size, found.speedup, found.efficiency) == (2000, pytest.approx(2), pytest.approx(1))


def test_more_threads_than_cores_are_said(tmp_path):
    write_sweep(
        tmp_path,
        result("workers=4", seconds=[1, 1], baseline=[2, 2]),
        result("workers=2", seconds=[1, 1], baseline=[2, 2]),
        result("workers=4", "strategy=emulated", seconds=[1, 1], baseline=[2, 2]),
    )
    assert row(tmp_path, workers=4, strategy="sync_dp").oversubscribed
    assert not row(tmp_path, workers=2).oversubscribed
    assert not row(tmp_path, workers=4, strategy="emulated").oversubscribed  # one process


def test_fewer_updates_are_said(tmp_path):
    write_sweep(tmp_path, result("workers=2", "data.size=1280", seconds=[1, 1], baseline=[2, 2]))
    assert (row(tmp_path).updates, row(tmp_path).baseline_updates) == (20, 40)


def test_failed_missing_damaged_and_diverged_jobs_are_listed_beside_the_good(tmp_path):
    good = result(seconds=[1, 1], baseline=[2, 2])
    write_sweep(
        tmp_path,
        good,
        replace(good, status="failed", error="rank 1 was killed by SIGKILL", blocks=[]),
        replace(good, status="diverged"),
        good,
    )
    (tmp_path / "3" / "result.json").write_text("half a")
    (tmp_path / "4" / ".hydra").mkdir(parents=True)
    (tmp_path / "4" / ".hydra" / "overrides.yaml").write_text("- workers=8\n")
    table = aggregate([tmp_path]).table
    assert sorted(table.status) == ["diverged", "failed", "missing", "ok", "unreadable"]
    assert "killed by SIGKILL" in row(tmp_path, status="failed").warnings
    assert math.isnan(row(tmp_path, status="diverged").seconds)


def test_folders_aggregate_together_and_repeats_are_pooled(tmp_path):
    one = write_sweep(tmp_path / "a", result(seconds=[1, 1], baseline=[2, 2]))
    two = write_sweep(
        tmp_path / "b",
        result(seconds=[1, 1], baseline=[2, 2]),
        result("workers=4", seconds=[1, 1], baseline=[2, 2]),
    )
    table = aggregate([one, two]).table
    assert table[["workers", "repeats"]].values.tolist() == [[2, 4], [4, 2]]


def test_a_copy_of_a_result_is_no_second_measurement(tmp_path):
    write_sweep(tmp_path, *[result(seconds=[1, 1], baseline=[2, 2])] * 2)
    assert aggregate([tmp_path]).table.repeats.tolist() == [2]


def test_a_folder_whose_name_is_no_text_is_named(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    write_sweep(folder, result(seconds=[1, 1], baseline=[2, 2]))
    write_report([folder], tmp_path / "report")
    assert "caf\\xe9" in (tmp_path / "report" / "results.csv").read_text()


@pytest.mark.parametrize(
    "other",
    [
        replace(MACHINE, cpu_model="Another CPU"),
        replace(MACHINE, usable_cores=8),
        replace(MACHINE, versions={**MACHINE.versions, "torch": "0.1"}),
    ],
    ids=["cpu", "cores", "torch"],
)
def test_two_machines_are_not_mixed(tmp_path, other):
    write_sweep(
        tmp_path,
        result("workers=1", seconds=[1, 1], baseline=[2, 2]),
        result("workers=2", seconds=[1, 1], baseline=[2, 2], machine=other),
    )
    with pytest.raises(ResultError, match="2 different machines"):
        aggregate([tmp_path])


def test_settings_that_differ_make_separate_series_named_by_the_difference(tmp_path):
    write_sweep(
        tmp_path,
        result("model=cnn", "epochs=1", seconds=[1, 1], baseline=[2, 2]),
        result("model=mlp", "epochs=2", seconds=[1, 1], baseline=[2, 2]),
    )
    assert set(aggregate([tmp_path]).table.series) == {"epochs=1, model=cnn", "epochs=2, model=mlp"}


def test_series_differ_by_what_differs_within_one_choice_too(tmp_path):
    times = {"seconds": [1, 1], "baseline": [2, 2]}
    write_sweep(
        tmp_path,
        result("model=mlp", "model.hidden=[256]", **times),
        result("model=mlp", "model.hidden=[512]", **times),
        result("model=cnn", **times),
    )
    labels = set(aggregate([tmp_path]).table.series)
    assert len(labels) == 3
    assert any("model=mlp" in label and "512" in label for label in labels)


TIMES = {"seconds": [1, 1], "baseline": [2, 2]}


def test_a_number_and_its_text_are_different_values(tmp_path):
    own = ["model=custom", "model.builder=mine:build"]
    write_sweep(
        tmp_path,
        result(*own, "+model.arguments.width=1", **TIMES),
        result(*own, "+model.arguments.width='1'", **TIMES),
    )
    assert set(aggregate([tmp_path]).table.series) == {"model.arguments.width=1", 'model.arguments.width="1"'}


DIFFERING = {
    "model": [{"user_files": {"mine": digest, "data.path": "d"}} for digest in ("aa", "bb")],
    "imported module": [{"user_files": {"mine": "aa", "helper": digest}} for digest in ("aa", "bb")],
    "data": [{"user_files": {"data.path": digest}} for digest in ("aa", "bb")],
    "code of dpexp": [{"machine": replace(MACHINE, code_sha256=digest)} for digest in ("aa", "bb")],
}


@pytest.mark.parametrize("changes", DIFFERING.values(), ids=DIFFERING)
def test_what_differs_in_model_data_or_code_is_not_pooled(tmp_path, changes):
    write_sweep(tmp_path, *(result(**TIMES, **change) for change in changes))
    rows = aggregate([tmp_path]).rows
    assert [row.repeats for row in rows] == [2, 2]
    assert len({row.series for row in rows}) == 2


def test_whole_numbers_stay_whole_beside_a_missing_job(tmp_path):
    write_sweep(tmp_path, result("seed=123456789", seconds=[1, 1], baseline=[2, 2]))
    (tmp_path / "1" / ".hydra").mkdir(parents=True)
    assert "123456789" in aggregate([tmp_path]).table.to_csv(float_format="%.6g")


def test_a_folder_without_jobs_is_an_error(tmp_path):
    with pytest.raises(ResultError, match="no job found below"):
        aggregate([tmp_path])


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ResultError, match="no such folder"):
        aggregate([tmp_path / "nowhere"])


@pytest.mark.parametrize("lacking", [BASELINE, BEST_SEQUENTIAL])
def test_jobs_of_which_only_one_has_an_arm_are_pooled(tmp_path, lacking):
    def with_best(block):
        return changed(block, **{BEST_SEQUENTIAL: arm(composed("workers=1"), 1.5, threads=2)})

    def without(block):
        return replace(block, arms={name: one for name, one in with_best(block).arms.items() if name != lacking})

    whole = result("workers=2", seconds=[1, 1], baseline=[2, 2], change=with_best)
    other = result("workers=2", seconds=[1.01, 1.01], baseline=[2, 2], change=without)
    (found,) = aggregate([write_sweep(tmp_path, whole, other)]).measured
    assert found.repeats == 4
    assert found.speedup.value == pytest.approx(2, rel=0.02)


def test_series_are_in_the_order_of_their_jobs(tmp_path):
    sizes = ("64", "256", "16")
    write_sweep(tmp_path, *(result(f"batch.size={size}", seconds=[1, 1], baseline=[2, 2]) for size in sizes))
    assert [row.series for row in aggregate([tmp_path]).rows] == [f"batch.size={size}" for size in sizes]
