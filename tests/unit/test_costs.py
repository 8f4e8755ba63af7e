"""What a training costs: the sentences about memory, and prices by arithmetic."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from conftest import composed
from results_helpers import MACHINE, changed, result, write_sweep

from dpexp.analysis.decision.choice import choose
from dpexp.analysis.intervals import Estimate
from dpexp.analysis.table import aggregate
from dpexp.analysis.table_row import Row
from dpexp.config.compose import compose
from dpexp.config.job import BASELINE, CANDIDATE
from dpexp.errors import ConfigError
from dpexp.report.answer import answer, details

GIB = 2**30
HERE = replace(MACHINE, memory_bytes=24 * GIB, cgroup_memory_bytes=None)


def one(workers, seconds=1.0, memory=None, price=None, machine=HERE, strategy="ddp", baseline=1.2):
    """A result of so many workers, who need so many GiB together; one process takes 1.2 s, and 0.9 GiB."""

    def with_memory(block):
        own, alone = block.arms[CANDIDATE], block.arms[BASELINE]
        if memory is None:
            return block
        return changed(
            block,
            candidate=replace(own, memory_bytes=int(memory * GIB)),
            baseline=replace(alone, memory_bytes=int(0.9 * GIB)),
        )

    overrides = [f"workers={workers}", f"strategy={strategy}", "data.size=5000"]
    overrides += [] if price is None else [f"price_per_hour={price}"]
    return result(*overrides, seconds=[seconds] * 3, baseline=[baseline] * 3, machine=machine, change=with_memory)


def summary(folder, *results):
    return aggregate([write_sweep(folder, *results)])


def said(found, about):
    return [line for line in [*answer(found), *details(found)] if about in line]


def test_the_sentence_says_what_is_needed_and_how_many_workers_there_is_room_for(tmp_path):
    found = summary(tmp_path, one(1, memory=1.0), one(2, memory=1.5), one(4, memory=2.5))
    assert said(found, "memory") == [
        "4 workers need 2.5 GiB of memory, one process 922 MiB; the 24.0 GiB of this machine hold about 47 workers."
    ]  # (24 - 0.5) / 0.5
    assert found.table.memory_bytes.tolist() == [GIB, int(1.5 * GIB), int(2.5 * GIB)]


def test_a_single_worker_count_tells_nothing_about_more(tmp_path):
    assert said(summary(tmp_path, one(2, memory=1.5)), "memory") == [
        "2 workers need 1.5 GiB of memory, one process 922 MiB."
    ]


def test_the_room_is_that_of_the_cgroup_where_it_sets_a_limit(tmp_path):
    small = replace(HERE, cgroup_memory_bytes=4 * GIB)
    found = summary(tmp_path, one(1, memory=1.0, machine=small), one(2, memory=1.5, machine=small))
    assert "the 4.0 GiB of this machine hold about 7 workers" in said(found, "memory")[0]


def test_what_was_not_measured_is_not_said(tmp_path):
    found = summary(tmp_path, one(1), one(2))
    assert not said(found, "memory")
    assert not said(found, "rice")
    assert found.table.memory_bytes.isna().all()
    assert found.table.price.isna().all()


def test_the_price_is_that_of_the_hours_of_the_whole_machine(tmp_path):
    found = summary(tmp_path, one(2, price=3.6))  # 0.001 a second
    (row,) = found.good
    assert row.price.value == pytest.approx(0.001 * row.seconds.value)
    assert row.price.high == pytest.approx(0.001 * row.seconds.high)
    assert row.baseline_price == pytest.approx(0.0012, rel=0.01)
    (line,) = said(found, "rice")
    assert line.startswith("Price of a training: one process with 1 thread 0.0012, 2 workers 0.001 (0.00")


def test_on_one_machine_the_fastest_is_the_cheapest_and_nothing_more_is_said(tmp_path):
    assert not said(summary(tmp_path, one(1, 1.2, price=1), one(2, 1.0, price=1)), "Cheapest")


def test_workers_on_several_hosts_pay_for_each_and_one_process_for_one(tmp_path):
    hosts = replace(HERE, local_world_size=1)
    found = summary(tmp_path, one(2, price=3.6, machine=hosts))
    assert found.good[0].price.value == pytest.approx(2 * 0.001, rel=0.01)
    (line,) = said(found, "Cheapest")
    assert line.startswith("Cheapest: one process with 1 thread, 0.0012 a training; the fastest costs 0.002 (0.00")


def test_hosts_of_several_prices_have_each_their_own(tmp_path):
    found = summary(tmp_path, one(2, 1.0, price=3.6), one(4, 0.9, price=7.2))
    assert [row.price.value for row in found.good] == pytest.approx([0.001, 0.0018], rel=0.01)
    assert choose(found.good).prices["2 workers"].value == pytest.approx(0.001, rel=0.01)


def test_measurements_of_the_same_at_several_prices_have_none(tmp_path):
    (row,) = summary(tmp_path, one(2, price=1), one(2, 1.01, price=2)).good
    assert math.isnan(row.price.value)


def test_in_weak_scaling_prices_are_not_compared():
    speed = Estimate(1.5, 1.4, 1.6)
    row = Row("ok", workers=2, threads_per_worker=1, data_scope="per_worker", overall_speedup=speed, price=speed)
    assert choose([row]).prices == {}


def test_the_price_is_no_part_of_what_is_measured():
    assert composed("price_per_hour=2").sha256 == composed().sha256
    with pytest.raises(ConfigError, match="price_per_hour=0: must be greater than 0"):
        composed("price_per_hour=0")
    assert composed("script.command=x {workers}", "price_per_hour=2").price_per_hour == 2


def test_a_folder_of_ones_own_may_have_local_settings(tmp_path):
    assert compose([], False, str(tmp_path)).jobs[0].config.price_per_hour is None
    (tmp_path / "local").mkdir()
    (tmp_path / "local/default.yaml").write_text("price_per_hour: 0.34\n")
    assert compose([], False, str(tmp_path)).jobs[0].config.price_per_hour == 0.34
    assert compose(["price_per_hour=1"], False, str(tmp_path)).jobs[0].config.price_per_hour == 1


def test_room_for_more_workers_than_are_allowed_is_not_told(tmp_path):
    (line,) = said(summary(tmp_path, one(1, memory=1.0), one(2, memory=1.01)), "memory")
    assert line.endswith("one process 922 MiB.")
