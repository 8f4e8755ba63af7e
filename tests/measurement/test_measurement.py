"""What is measured and when: blocks, their order, the discarded ones, and their arms."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from basics import tiny
from training_helpers import WHOLE, measured

from dpexp.config.job import BASELINE, BEST_SEQUENTIAL, CANDIDATE, SHARED_MEMORY
from dpexp.errors import WorkerError
from dpexp.launchers.local import LocalLauncher
from dpexp.measurement import built_in_trainer, job
from dpexp.measurement.built_in_trainer import BuiltInTrainer


def test_blocks_alternate_their_order(tmp_path):
    result = measured(tmp_path, "measurement.repeats=3")
    assert [next(iter(block.arms)) for block in result.blocks] == [BASELINE, CANDIDATE, BASELINE]


def test_without_a_baseline_none_is_run(tmp_path):
    result = measured(tmp_path, "measurement.baseline=none", WHOLE)
    assert list(result.blocks[0].arms) == list(result.trainings) == [CANDIDATE]


def test_without_a_paired_baseline_as_many_blocks_are_made_as_asked_for(tmp_path):
    settings = ["measurement.precision=1e-9", "measurement.repeats=2", "measurement.baseline=none"]
    assert len(measured(tmp_path, *settings).blocks) == 2


def test_every_process_reports_its_threads(tmp_path):
    (block,) = measured(tmp_path, "workers=2", "threads_per_worker=2").blocks
    assert len(block.arms[CANDIDATE].processes) == 2
    for arm in block.arms.values():
        assert arm.threads == 2
        for process in arm.processes:
            assert process.threads == 2


def test_the_gradient_has_the_size_of_the_trained_parameters(tmp_path):
    (block,) = measured(tmp_path, "workers=2").blocks
    parameters = 16 * 7 + 7 + 7 * 3 + 3  # of the tiny MLP, in float64
    assert [arm.gradient_bytes for arm in block.arms.values()] == [8 * parameters] * 2


def test_a_step_counts_the_samples_of_all_workers(tmp_path):
    overrides = ["workers=2", "data.size=100", "batch.size=10"]
    (block,) = measured(tmp_path, *overrides, "batch.scope=per_worker").blocks
    samples = {name: arm.samples_per_step for name, arm in block.arms.items()}
    assert samples == {BASELINE: 10, CANDIDATE: 20}


def test_the_phases_of_all_processes_are_kept(tmp_path):
    (block,) = measured(tmp_path, "workers=3").blocks
    for arm in block.arms.values():
        (steps,) = {len(values) for values in arm.phases.values()}
        assert steps == min(256, len(arm.all_step_seconds))
        assert {len(step) for values in arm.phases.values() for step in values} == {len(arm.processes)}


def test_where_the_data_lie_changes_from_block_to_block(monkeypatch, tmp_path):
    """It changes times by about a percent, which would be the same in all blocks otherwise."""
    places = []
    correct = LocalLauncher.segments

    def segments(launcher, specs):
        places.append({id(spec.dataset) for spec in specs.values()})
        return correct(launcher, specs)

    monkeypatch.setattr(LocalLauncher, "segments", segments)
    measured(tmp_path, "measurement.repeats=3")
    assert [len(one) for one in places] == [1, 1, 1]
    assert len(set.union(*places)) == 3


def test_progress_runs_from_nothing_to_all_that_was_done(tmp_path):
    seen = []
    config = tiny("measurement.repeats=2", WHOLE)
    job.measure_job(config, tmp_path, lambda text, done: seen.append((text, done)))
    shares = [done for _, done in seen]
    assert shares == sorted(shares)
    assert 0 <= shares[0] < shares[-1] <= 1
    texts = list(dict.fromkeys(text for text, _ in seen))
    assert texts == ["block 1", "block 2", "training as candidate, seed 0", "training as baseline, seed 0"]


# The best sequential process.


def test_of_two_numbers_of_threads_each_is_measured_in_every_block(monkeypatch, tmp_path):
    monkeypatch.setattr(job, "usable_cores", lambda: 2)
    for threads, other in ((1, 2), (2, 1)):
        overrides = ["measurement.best_sequential=true", "measurement.repeats=2", f"threads_per_worker={threads}"]
        result = measured(tmp_path / str(threads), *overrides)
        assert [block.arms[BEST_SEQUENTIAL].threads for block in result.blocks] == [other] * 2
        assert [block.arms[BASELINE].threads for block in result.blocks] == [threads] * 2


def test_without_a_baseline_the_best_of_two_thread_counts_is_looked_for(monkeypatch, tmp_path):
    monkeypatch.setattr(job, "usable_cores", lambda: 2)
    monkeypatch.setattr(job, "probe_best_threads", lambda config, trainer, on_progress: config.threads_per_worker)
    (block,) = measured(tmp_path, "measurement.best_sequential=true", "measurement.baseline=none").blocks
    assert {name: arm.threads for name, arm in block.arms.items()} == {CANDIDATE: 1, BEST_SEQUENTIAL: 1}


def test_no_best_sequential_arm_with_the_baselines_threads(monkeypatch, tmp_path):
    monkeypatch.setattr(job, "probe_best_threads", lambda config, trainer, on_progress: config.threads_per_worker)
    (block,) = measured(tmp_path, "measurement.best_sequential=true").blocks
    assert set(block.arms) == {BASELINE, CANDIDATE}


def test_all_thread_counts_are_tried_once_for_jobs_that_differ_in_workers_only(monkeypatch, tmp_path):
    monkeypatch.setattr(job, "_best_threads", {})
    monkeypatch.setattr(job, "usable_cores", lambda: 3)
    monkeypatch.setattr(job, "PROBE_SECONDS", 0.0)
    tried = []
    correct = BuiltInTrainer.running

    def count(trainer, variants):
        tried.append({config.threads_per_worker for config in variants.values()})
        return correct(trainer, variants)

    monkeypatch.setattr(BuiltInTrainer, "running", count)
    settings = ["measurement.best_sequential=true", "measurement.baseline=none"]
    for number, overrides in enumerate((["workers=1"], ["workers=2", "epochs=3", "data.size=77"])):
        result = measured(tmp_path / str(number), *settings, *overrides)
        best = next(iter(job._best_threads.values()))
        found = result.blocks[0].arms.get(BEST_SEQUENTIAL)
        assert best == (1 if found is None else found.threads)
        assert ({1, 2, 3} in tried) is (number == 0)
        tried.clear()


# Gradients in shared memory.


@pytest.mark.parametrize(("exchange", "tried"), [(0.9, True), (0.05, False)], ids=["much", "little"])
def test_shared_memory_becomes_an_arm_if_the_exchange_is_the_bottleneck(monkeypatch, tmp_path, exchange, tried):
    made = built_in_trainer._arm

    def with_exchange(spec, reports, *others):
        found = made(spec, reports, *others)
        phases = {name: np.full((9, len(reports)), 0.1) for name in found.phases}
        phases["communicate"] = np.full((9, len(reports)), exchange * 0.3 / (1 - exchange))
        return dataclasses.replace(found, phases={name: values.tolist() for name, values in phases.items()})

    monkeypatch.setattr(built_in_trainer, "_arm", with_exchange)
    first, second = measured(tmp_path, "strategy=ddp", "measurement.repeats=2").blocks
    assert list(first.arms) == [BASELINE, CANDIDATE]
    assert (SHARED_MEMORY in second.arms) is tried


def fail_beside_shared_memory(monkeypatch, message):
    """Every block with that arm fails."""
    made = BuiltInTrainer.running

    def failing(trainer, variants):
        if SHARED_MEMORY in variants:
            raise WorkerError(message)
        return made(trainer, variants)

    monkeypatch.setattr(job, "_may_share_memory", lambda config, block: True)
    monkeypatch.setattr(BuiltInTrainer, "running", failing)


def test_shared_memory_that_fails_is_left_out_unless_it_was_asked_for(monkeypatch, tmp_path):
    fail_beside_shared_memory(monkeypatch, "shared memory: rank 1 failed")
    result = measured(tmp_path, "strategy=ddp", "measurement.repeats=2")
    assert [sorted(block.arms) for block in result.blocks] == [[BASELINE, CANDIDATE]] * 2
    with pytest.raises(WorkerError, match="rank 1 failed"):
        measured(tmp_path / "asked", "strategy=ddp", "measurement.shared_memory=always")


def test_another_arm_that_fails_beside_shared_memory_fails_the_job(monkeypatch, tmp_path):
    fail_beside_shared_memory(monkeypatch, "rank 1 was killed by SIGKILL")
    with pytest.raises(WorkerError, match="rank 1 was killed by SIGKILL"):
        measured(tmp_path, "strategy=ddp", "measurement.repeats=2")


# How long.


def test_blocks_are_added_until_the_speedup_is_precise(monkeypatch, tmp_path):
    widths = iter([0.3, 0.01])

    def compare(*arguments):
        return SimpleNamespace(shown=SimpleNamespace(precision=next(widths)))

    monkeypatch.setattr("dpexp.measurement.budget.compare", compare)
    settings = ["measurement.precision=0.02", "measurement.repeats=3"]
    monkeypatch.setattr("dpexp.measurement.budget.Budget.block_is_long_enough", lambda *arguments: True)
    result = measured(tmp_path, *settings, "measurement.max_seconds=1000")
    assert len(result.blocks) == 4


def test_a_minimal_block_is_made_without_any_time(tmp_path):
    settings = ["measurement.precision=1e-9", "measurement.repeats=3", "measurement.max_seconds=0.001"]
    (block,) = measured(tmp_path, *settings).blocks
    assert {len(arm.turns) for arm in block.arms.values()} == {2}
