"""What is timed and when: blocks, their order, the discarded ones, and failures."""

from __future__ import annotations

import pytest
import torch
from conftest import tiny
from fault_helpers import run_config

from dpexp.analysis.intervals import Estimate
from dpexp.data.dataset import load
from dpexp.errors import ConfigError, DivergedError, WorkerError
from dpexp.launchers.local import LocalLauncher
from dpexp.measurement import best_sequential, blocks
from dpexp.measurement.blocks import measure
from dpexp.measurement.loop_trainer import LoopTrainer
from dpexp.models import architectures
from dpexp.models.initial_state import initial_state
from dpexp.results import storage


def measured(*overrides, checkpoint=None):
    config = tiny(*overrides)
    dataset = load(config)
    seen = []
    initial = initial_state(config, dataset)
    progress = lambda text, done: seen.append(done)  # noqa: E731
    return list(measure(config, LoopTrainer(dataset, initial, LocalLauncher()), checkpoint, progress)), seen


def test_blocks_alternate_their_order_and_the_first_are_discarded():
    found, _ = measured("measurement.repeats=2", "measurement.warmup=1")
    assert [block.warmup for block in found] == [True, False, False]
    assert [block.order[0] for block in found] == ["baseline", "baseline", "candidate"]


def test_every_block_repeats_the_same_training():
    found, _ = measured("measurement.repeats=2", "workers=2")
    assert len({block.candidate.parameters_sha256 for block in found}) == 1
    assert len({block.baseline.parameters_sha256 for block in found}) == 1


def test_with_one_worker_candidate_and_baseline_are_the_same_training():
    (block,), _ = measured("workers=1")
    assert block.candidate.parameters_sha256 == block.baseline.parameters_sha256


def test_without_a_baseline_none_is_run():
    (block,), _ = measured("measurement.baseline=none")
    assert block.baseline is None
    assert block.order == ["candidate"]


def test_every_worker_reports_its_threads_and_its_times_outside_the_timed_region():
    (block,), _ = measured("workers=2", "threads_per_worker=2")
    assert [worker.rank for worker in block.candidate.workers] == [0, 1]
    for worker in block.candidate.workers + block.baseline.workers:
        assert worker.threads == 2
        assert worker.startup_seconds > 0
        assert worker.warmup_seconds > 0
        assert worker.evaluation_seconds >= 0


def test_the_slowest_worker_counts():
    (block,), _ = measured("workers=3")
    assert block.candidate.seconds == max(worker.seconds for worker in block.candidate.workers)


def test_losses_of_all_workers_make_the_mean_over_the_training_samples():
    (block,), _ = measured("workers=2", "batch.size=24")
    # The baseline makes the same updates from the same samples (global batch): the same losses.
    assert block.candidate.epoch_losses == pytest.approx(block.baseline.epoch_losses, rel=1e-10)
    assert block.candidate.epoch_losses[1] < block.candidate.epoch_losses[0]


def test_accuracy_comes_from_the_first_kept_block():
    found, _ = measured("measurement.warmup=1", "measurement.repeats=2")
    assert [block.candidate.test_accuracy is not None for block in found] == [False, True, False]
    assert 0 <= found[1].baseline.test_accuracy <= 1


def test_progress_runs_from_nothing_to_all():
    _, seen = measured("measurement.repeats=2")
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0, 1)


def test_a_checkpoint_holds_the_trained_weights(tmp_path):
    (block,), _ = measured("workers=2", checkpoint=tmp_path / "model.pt")
    config = tiny()
    model = architectures.build(config.model, (1, 4, 4), 3).double()
    model.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    from dpexp.training.evaluation import parameters_sha256

    assert parameters_sha256(model) == block.candidate.parameters_sha256


def test_ones_own_model_is_trained():
    (block,), _ = measured("model=custom", "model.builder=user_models:own_model", "+model.arguments.width=5")
    assert block.candidate.epoch_losses[-1] is not None


def test_a_model_of_the_wrong_shape_is_a_config_error():
    config = tiny("model=custom", "model.builder=user_models:too_wide")
    with pytest.raises(ConfigError, match=r"returns \(2, 4\); it must be logits of shape \(2, 3\)"):
        initial_state(config, load(config))


def test_a_builder_that_raises_is_a_config_error():
    config = tiny("model=custom", "model.builder=user_models:own_model")
    with pytest.raises(ConfigError, match="missing 1 required positional argument: 'width'"):
        initial_state(config, load(config))


def test_a_failing_worker_is_recorded_with_its_traceback(tmp_path):
    config = tiny("model=custom", "model.builder=user_models:break_in_training")
    with pytest.raises(WorkerError, match="RuntimeError: no such luck"):
        run_config(config, tmp_path)
    recorded = storage.read(tmp_path / storage.FILE_NAME)
    assert recorded.status == "failed"
    assert "no such luck" in recorded.error
    assert "break_in_training" in recorded.details


def test_a_diverged_training_is_marked(tmp_path):
    with pytest.raises(DivergedError, match="not a finite number"):
        run_config(tiny("optimizer.lr=1e300"), tmp_path)
    recorded = storage.read(tmp_path / storage.FILE_NAME)
    assert recorded.status == "diverged"
    assert "not a finite number" in recorded.error


def test_training_visits_as_many_samples_as_the_config_says():
    from dpexp.clock.recorder import NoRecorder
    from dpexp.processes.shared_memory import SharedTensors
    from dpexp.strategies import Sequential
    from dpexp.training import loop
    from dpexp.training.turns import Turns

    visited = []

    class Recording(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(16, 3)

        def forward(self, inputs):
            visited.append(len(inputs))
            return self.linear(inputs.flatten(1))

    config = tiny("workers=2", "data.scope=per_worker", "data.size=48", "measurement.warmup_steps=0")
    dataset = load(config)
    baseline = config.baseline()
    model = Recording().double()
    strategy = Sequential(baseline, 0, model, SharedTensors.copy_of(model.state_dict()), None)
    strategy.start()
    loop.train(baseline, dataset, strategy, Turns(strategy), NoRecorder())
    assert sum(visited) == baseline.epochs * 48


def test_replicas_that_part_fail_the_run():
    with pytest.raises(WorkerError, match=r"replicas differ at the end: ranks \[1\]"):
        measured("workers=2", "model=custom", "model.builder=user_models:leave_the_group")


def test_too_few_file_descriptors_are_a_worker_error():
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_now = len(list(__import__("pathlib").Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 20, limit[1]))
    try:
        with pytest.raises(WorkerError, match=r"workers=24 can't be started: Too many open files"):
            measured("workers=24", "measurement.baseline=none")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)


def test_the_best_sequential_process_is_measured_where_it_has_other_threads(monkeypatch):
    monkeypatch.setattr(blocks, "best_threads", lambda config, trainer, on_start: 2)
    two, _ = measured("measurement.best_sequential=true", "measurement.repeats=2")
    assert [[worker.threads for worker in block.best_sequential.workers] for block in two] == [[2], [2]]
    assert two[0].best_sequential.parameters_sha256 == two[0].baseline.parameters_sha256
    (same,), _ = measured("measurement.best_sequential=true", "threads_per_worker=2")
    assert same.best_sequential is None


def test_all_thread_counts_are_tried_once_for_jobs_that_differ_in_workers_only(monkeypatch):
    monkeypatch.setattr(best_sequential, "_found", {})
    tried = []
    correct = LoopTrainer.train_in_turns

    def count(trainer, variants, *options):
        tried.append({variant.config.threads_per_worker for variant in variants.values()})
        return correct(trainer, variants, *options)

    monkeypatch.setattr(LoopTrainer, "train_in_turns", count)
    monkeypatch.setattr(best_sequential, "usable_cores", lambda: 3)
    monkeypatch.setattr(best_sequential, "PROBE_UPDATES", 1)
    measured("measurement.best_sequential=true", "workers=1", "measurement.baseline=none")
    assert {1, 2, 3} in tried
    tried.clear()
    measured("measurement.best_sequential=true", "workers=2", "measurement.baseline=none")
    assert {1, 2, 3} not in tried


def test_blocks_are_added_until_the_speedup_is_precise(monkeypatch):
    widths = iter([0.5, 0.3, 0.01])
    monkeypatch.setattr(blocks, "_speedup", lambda config, found: Estimate(1.0, 1.0, (1 + next(widths)) ** 2))
    monkeypatch.setattr(blocks, "_report", lambda *arguments: None)
    settings = ["measurement.precision=0.02", "measurement.repeats=3", "measurement.warmup=1"]
    found, _ = measured(*settings, "measurement.max_seconds=1000")
    assert [block.warmup for block in found] == [True] + [False] * 5


def test_blocks_end_when_the_time_is_spent():
    settings = [
        "measurement.precision=1e-9",
        "measurement.drift=0",
        "measurement.repeats=3",
        "measurement.max_seconds=0.001",
    ]
    found, _ = measured(*settings)
    assert len(found) == 3


def test_without_a_paired_baseline_as_many_blocks_are_made_as_asked_for():
    settings = [
        "measurement.precision=1e-9",
        "measurement.drift=0",
        "measurement.repeats=2",
        "measurement.baseline=none",
    ]
    found, _ = measured(*settings)
    assert len(found) == 2


@pytest.mark.parametrize("strategy", ["sync_dp", "ddp"])
def test_independent_copies_train_each_a_workers_share(strategy):
    overrides = ["measurement.independent_copies=true", "workers=2", "data.size=100", "batch.size=10"]
    (block,), _ = measured(f"strategy={strategy}", *overrides)
    assert [worker.rank for worker in block.independent.workers] == [0, 1]
    assert block.independent.parameters_sha256 != block.candidate.parameters_sha256


def test_a_strategy_of_one_process_has_no_independent_copies():
    (block,), _ = measured("measurement.independent_copies=true", "workers=2", "strategy=emulated")
    assert block.independent is None


def test_a_target_accuracy_is_looked_for_with_other_seeds_and_the_clock_stopped():
    found, _ = measured("target_accuracy=0.5", "measurement.repeats=2", "workers=2", "epochs=3")
    assert len({block.candidate.parameters_sha256 for block in found}) == 2
    for block in found:
        for training in (block.candidate, block.baseline):
            assert len(training.epoch_accuracies) == 3
            assert training.epoch_seconds == sorted(training.epoch_seconds)
            assert training.epoch_seconds[-1] <= training.seconds


def test_candidate_and_baseline_of_a_block_share_its_seed():
    found, _ = measured("target_accuracy=0.5", "measurement.repeats=2", "workers=1")
    assert all(block.candidate.parameters_sha256 == block.baseline.parameters_sha256 for block in found)


def test_warnings_stand_in_the_result_itself(tmp_path):
    run_config(tiny("measurement.repeats=1"), tmp_path)
    written = storage.read(tmp_path / storage.FILE_NAME)
    assert any(warning.kind == "one block" for warning in written.warnings)
