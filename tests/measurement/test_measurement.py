"""What is measured and when: blocks, their order, the discarded ones, whole trainings, and failures."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import tiny
from fault_helpers import run_config

from dpexp.config.job import BASELINE, BEST_SEQUENTIAL, CANDIDATE, SHARED_MEMORY
from dpexp.errors import ConfigError, DivergedError, WorkerError
from dpexp.launchers.local import LocalLauncher
from dpexp.measurement import built_in_trainer, job
from dpexp.measurement.built_in_trainer import BuiltInTrainer
from dpexp.measurement.trainer import TimedSteps
from dpexp.measurement.whole_trainings import WholeTrainings
from dpexp.processes.shared_memory import SharedTensors
from dpexp.results import storage
from dpexp.train import loop
from dpexp.train.data.dataset import load
from dpexp.train.models import architectures
from dpexp.train.models.initial_state import initial_state
from dpexp.train.strategies import Strategy
from dpexp.train.training_clock import TrainingClock
from dpexp.train.worker import parameters_sha256

WHOLE = "measurement.whole_trainings=always"
BRIEF = "measurement.max_seconds=0.01"  # a block of the fewest rounds


def measured(folder, *overrides, resume=False):
    """The result of a job."""
    config = tiny(BRIEF, *overrides)
    folder.mkdir(exist_ok=True)
    run_config(config, folder, resume=resume)
    return storage.read(folder / storage.FILE_NAME)


# Blocks.


def test_blocks_alternate_their_order_and_the_first_are_discarded(tmp_path):
    result = measured(tmp_path, "measurement.repeats=2", "measurement.warmup=1")
    assert [block.warmup for block in result.blocks] == [True, False, False]
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
        assert steps == min(256, len(arm.step_seconds))
        assert {len(step) for values in arm.phases.values() for step in values} == {len(arm.processes)}


def test_where_the_data_lie_changes_from_block_to_block(monkeypatch, tmp_path):
    """It changes times by about a percent, which would be the same in all blocks otherwise."""
    places = []
    correct = LocalLauncher.segments

    def segments(launcher, works):
        places.append({id(work.dataset) for work in works.values()})
        return correct(launcher, works)

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


def test_no_best_sequential_arm_with_the_baselines_threads(monkeypatch, tmp_path):
    monkeypatch.setattr(job, "best_threads", lambda config, trainer, on_progress: config.threads_per_worker)
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

    def with_exchange(work, reports, *others):
        found = made(work, reports, *others)
        phases = {name: np.full((9, len(reports)), 0.1) for name in found.phases}
        phases["communicate"] = np.full((9, len(reports)), exchange * 0.3 / (1 - exchange))
        return dataclasses.replace(found, phases={name: values.tolist() for name, values in phases.items()})

    monkeypatch.setattr(built_in_trainer, "_arm", with_exchange)
    first, second = measured(tmp_path, "strategy=ddp", "measurement.repeats=2").blocks
    assert list(first.arms) == [BASELINE, CANDIDATE]
    assert (SHARED_MEMORY in second.arms) is tried


def test_shared_memory_that_fails_is_left_out_unless_it_was_asked_for(monkeypatch, tmp_path):
    monkeypatch.setattr(job, "_is_exchange_bottleneck", lambda config, block: True)
    made = BuiltInTrainer.running

    def failing(trainer, variants):
        if SHARED_MEMORY in variants:
            raise WorkerError("shared memory: rank 1 failed")
        return made(trainer, variants)

    monkeypatch.setattr(BuiltInTrainer, "running", failing)
    result = measured(tmp_path, "strategy=ddp", "measurement.repeats=2")
    assert [sorted(block.arms) for block in result.blocks] == [[BASELINE, CANDIDATE]] * 2
    with pytest.raises(WorkerError, match="rank 1 failed"):
        measured(tmp_path / "asked", "strategy=ddp", "measurement.shared_memory=always")


# How long.


def test_blocks_are_added_until_the_speedup_is_precise(monkeypatch, tmp_path):
    widths = iter([0.3, 0.01])

    def compare(*arguments):
        return SimpleNamespace(shown=SimpleNamespace(precision=next(widths)))

    monkeypatch.setattr("dpexp.measurement.budget.compare", compare)
    settings = ["measurement.precision=0.02", "measurement.repeats=3", "measurement.warmup=1"]
    monkeypatch.setattr("dpexp.measurement.budget.Budget.block_is_long_enough", lambda *arguments: True)
    result = measured(tmp_path, *settings, "measurement.max_seconds=1000")
    assert [block.warmup for block in result.blocks] == [True] + [False] * 4


def test_a_minimal_block_is_made_without_any_time(tmp_path):
    settings = ["measurement.precision=1e-9", "measurement.repeats=3", "measurement.max_seconds=0.001"]
    (block,) = measured(tmp_path, *settings).blocks
    assert {len(arm.turn_seconds) for arm in block.arms.values()} == {2}


# Whole trainings.


def test_with_one_worker_candidate_and_baseline_are_the_same_training(tmp_path):
    trainings = measured(tmp_path, "workers=1", WHOLE).trainings
    assert trainings[CANDIDATE][0].parameters_sha256 == trainings[BASELINE][0].parameters_sha256
    assert trainings[CANDIDATE][0].epoch_losses == trainings[BASELINE][0].epoch_losses


def test_losses_of_all_workers_make_the_mean_over_the_training_samples(tmp_path):
    trainings = measured(tmp_path, "workers=2", "batch.size=24", WHOLE).trainings
    (candidate,), (baseline,) = trainings[CANDIDATE], trainings[BASELINE]
    # The baseline makes the same updates from the same samples (global batch): the same losses.
    assert candidate.epoch_losses == pytest.approx(baseline.epoch_losses, rel=1e-10)
    assert candidate.epoch_losses[1] < candidate.epoch_losses[0]
    assert 0 <= candidate.test_accuracy <= 1
    assert candidate.test_accuracy == baseline.test_accuracy
    assert candidate.epoch_accuracies == []
    assert (candidate.seed, baseline.seed) == (0, 0)
    assert candidate.seconds > 0


def test_a_training_takes_as_long_as_its_slowest_worker(monkeypatch, tmp_path):
    reports = []
    correct = LocalLauncher.run

    def run(launcher, work):
        reports.append(correct(launcher, work))
        return reports[-1]

    monkeypatch.setattr(LocalLauncher, "run", run)
    (candidate,) = measured(tmp_path, "workers=3", "measurement.baseline=none", WHOLE).trainings[CANDIDATE]
    assert candidate.seconds == max(report.seconds for report in reports[0])


def test_a_checkpoint_holds_the_trained_weights(tmp_path):
    (trained,) = measured(tmp_path, "workers=2", "checkpoint=true").trainings[CANDIDATE]
    config = tiny()
    model = architectures.build_model(config.model, (1, 4, 4), 3).double()
    model.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert parameters_sha256(model) == trained.parameters_sha256


@pytest.mark.parametrize(
    ("overrides", "made"),
    [
        (["measurement.max_seconds=2"], True),
        (["measurement.max_seconds=2", "epochs=100000"], False),
        (["measurement.whole_trainings=never", "checkpoint=true"], True),
    ],
    ids=["short", "long", "for a checkpoint"],
)
def test_whole_trainings_are_made_where_they_are_short_or_asked_for(tmp_path, overrides, made):
    result = measured(tmp_path, "measurement.whole_trainings=auto", *overrides)
    assert set(result.trainings) == ({CANDIDATE, BASELINE} if made else set())


@pytest.mark.parametrize(
    ("settings", "step_seconds", "reserved", "made"),
    [
        ([], 0.01, 10 * (0.01 + 0.02) + 0.6, True),  # of both, with their starts
        (["measurement.baseline=none"], 0.01, 10 * 0.01 + 0.3, True),
        ([], 1.0, 0.0, False),  # too long
        (["measurement.whole_trainings=never"], 0.01, 0.0, False),
        ([WHOLE], 0.01, 0.0, True),  # on top of the budget
        ([WHOLE], 1.0, 0.0, True),
        (["target_accuracy=0.5", "measurement.whole_trainings=never"], 0.01, 0.0, True),
    ],
)
def test_time_is_reserved_for_short_whole_trainings(settings, step_seconds, reserved, made):
    trainings = WholeTrainings(tiny("measurement.whole_trainings=auto", *settings), job_seconds=9.0)
    seconds = {CANDIDATE: step_seconds, BASELINE: 2 * step_seconds, "others": 100.0}
    steps = {name: TimedSteps(step_seconds=one, min_step_seconds=one) for name, one in seconds.items()}
    assert trainings.reserve_seconds(steps) == pytest.approx(reserved)
    assert bool([*trainings.configs()]) is made


def test_a_target_accuracy_is_looked_for_with_several_seeds(tmp_path):
    result = measured(tmp_path, "target_accuracy=0.5", "measurement.repeats=3", "workers=2", "epochs=3", "seed=7")
    for trainings in result.trainings.values():
        assert [training.seed for training in trainings] == [7, 8, 9]
        assert len({training.parameters_sha256 for training in trainings}) == 3
        for training in trainings:
            assert len(training.epoch_accuracies) == 3
            assert training.epoch_accuracies[-1] == training.test_accuracy


def test_candidate_and_baseline_of_a_seed_start_alike(tmp_path):
    trainings = measured(tmp_path, "target_accuracy=0.5", "measurement.repeats=2", "workers=1").trainings
    pairs = zip(trainings[CANDIDATE], trainings[BASELINE], strict=True)
    assert all(candidate.parameters_sha256 == baseline.parameters_sha256 for candidate, baseline in pairs)


def test_whole_trainings_that_were_made_before_an_interruption_are_kept(tmp_path):
    """A job that ended after the first of two seeds makes only the second."""
    overrides = ["target_accuracy=0.5", "measurement.repeats=2", "workers=1"]
    whole = measured(tmp_path, *overrides)
    first = {name: trainings[:1] for name, trainings in whole.trainings.items()}
    storage.write(dataclasses.replace(whole, status="unfinished", trainings=first), tmp_path)
    again = measured(tmp_path, *overrides, resume=True)
    assert again.blocks[: len(whole.blocks)] == whole.blocks
    for name, trainings in again.trainings.items():
        assert trainings[:1] == first[name]
        assert [one.parameters_sha256 for one in trainings] == [one.parameters_sha256 for one in whole.trainings[name]]


class Counting(Strategy):
    """Counts its barriers: all processes start their clocks together."""

    barriers = 0

    def barrier(self) -> None:
        self.barriers += 1


def counting(config):
    """One process, with its data."""
    dataset = load(config)
    model = architectures.build_model(config.model, dataset.input_shape, dataset.classes).double()
    strategy = Counting(config, 0, model, SharedTensors.copy_of(model.state_dict()), None)
    strategy.start()
    return strategy, dataset


def test_what_is_done_while_the_clock_is_paused_does_not_count(monkeypatch):
    now = iter([10.0, 13.0, 50.0, 54.0])
    monkeypatch.setattr("dpexp.train.training_clock.time.perf_counter", lambda: next(now))
    ranks, _ = counting(tiny())
    clock = TrainingClock(ranks)
    assert list(clock.epochs(2)) == [0, 1]
    clock.pause()
    assert clock.seconds == 3.0
    clock.resume()
    clock.pause()
    assert clock.seconds == 7.0
    assert ranks.barriers == 2


def test_the_clock_is_paused_while_a_training_is_evaluated():
    config = tiny("strategy=sequential", "epochs=3")
    strategy, dataset = counting(config)
    clock, seen = TrainingClock(strategy), []
    for _ in loop.train(config, dataset, strategy, clock):
        clock.pause()
        seen.append((clock.seconds, strategy.barriers))
        clock.resume()
    times = [seconds for seconds, _ in seen]
    assert times == sorted(times)
    assert 0 < times[0] < times[-1] <= clock.seconds
    assert [barriers for _, barriers in seen] == [1, 2, 3]  # each epoch's part is started anew


def test_training_visits_as_many_samples_as_the_config_says():
    visited = []

    class Recording(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(16, 3)

        def forward(self, inputs):
            visited.append(len(inputs))
            return self.linear(inputs.flatten(1))

    config = tiny("workers=2", "data.scope=per_worker", "data.size=48", "measurement.warmup_steps=2")
    dataset = load(config)
    baseline = config.baseline()
    model = Recording().double()
    strategy = Strategy(baseline, 0, model, SharedTensors.copy_of(model.state_dict()), None)
    strategy.start()
    list(loop.train(baseline, dataset, strategy, TrainingClock(strategy)))
    assert sum(visited) == baseline.epochs * 48


# Models of one's own, and failures.


def test_ones_own_model_is_trained(tmp_path):
    own = ["model=custom", "model.builder=user_models:own_model", "+model.arguments.width=5"]
    assert measured(tmp_path, *own, WHOLE).trainings[CANDIDATE][0].epoch_losses[-1] is not None


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


@pytest.mark.parametrize("whole", ["always", "never"])
def test_a_diverged_training_is_marked(tmp_path, whole):
    """Whether it is seen in its steps or in a whole training."""
    with pytest.raises(DivergedError, match="not a finite number"):
        run_config(tiny("optimizer.lr=1e300", f"measurement.whole_trainings={whole}"), tmp_path)
    recorded = storage.read(tmp_path / storage.FILE_NAME)
    assert recorded.status == "diverged"
    assert "not a finite number" in recorded.error


def test_a_training_that_diverges_in_its_last_epochs_is_marked(monkeypatch, tmp_path):
    correct = LocalLauncher.run

    def run(launcher, work):
        return [dataclasses.replace(report, epoch_loss_sums=[1.0, math.inf]) for report in correct(launcher, work)]

    monkeypatch.setattr(LocalLauncher, "run", run)
    with pytest.raises(DivergedError):
        run_config(tiny(WHOLE), tmp_path)
    assert storage.read(tmp_path / storage.FILE_NAME).status == "diverged"


LEAVING = ["workers=2", "model=custom", "model.builder=user_models:leave_the_group"]


def test_replicas_that_part_fail_the_run(tmp_path):
    with pytest.raises(WorkerError, match=r"replicas differ at the end: ranks \[1\]"):
        measured(tmp_path, *LEAVING)


def test_replicas_that_part_fail_a_whole_training_too():
    config = tiny(*LEAVING)
    with pytest.raises(WorkerError, match=r"replicas differ at the end: ranks \[1\]"):
        BuiltInTrainer(config, LocalLauncher()).train(config, None)


def test_too_few_file_descriptors_are_a_worker_error(tmp_path):
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_now = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 20, limit[1]))
    try:
        with pytest.raises(WorkerError, match=r"workers=24 can't be started: Too many open files"):
            measured(tmp_path, "workers=24", "measurement.baseline=none")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
