"""The memory that a training needs, in sentences."""

from __future__ import annotations

from dataclasses import replace

from results_helpers import changed, result, write_sweep

from dpexp.analysis.table import aggregate
from dpexp.config.job import BASELINE, CANDIDATE
from dpexp.report.answer import answer, details

GIB = 2**30


def one(workers, memory=None):
    """A result of so many workers, who need so many GiB together; one process needs 0.9 GiB."""

    def with_memory(block):
        own, alone = block.arms[CANDIDATE], block.arms[BASELINE]
        if memory is None:
            return block
        return changed(
            block,
            candidate=replace(own, memory_bytes=int(memory * GIB)),
            baseline=replace(alone, memory_bytes=int(0.9 * GIB)),
        )

    overrides = [f"workers={workers}", "strategy=ddp", "data.size=5000"]
    return result(*overrides, seconds=[1.0] * 3, baseline=[1.2] * 3, change=with_memory)


def summary(folder, *results):
    return aggregate([write_sweep(folder, *results)])


def said(found, about):
    return [line for line in [*answer(found), *details(found)] if about in line]


def test_the_memory_sentence_has_the_need_of_the_most_workers(tmp_path):
    found = summary(tmp_path, one(1, memory=1.0), one(2, memory=1.5), one(4, memory=2.5))
    assert said(found, "memory") == ["4 workers need 2.5 GiB of memory, one process 922 MiB."]
    assert found.table.memory_bytes.tolist() == [GIB, int(1.5 * GIB), int(2.5 * GIB)]


def test_what_was_not_measured_is_not_said(tmp_path):
    found = summary(tmp_path, one(1), one(2))
    assert not said(found, "memory")
    assert found.table.memory_bytes.isna().all()
