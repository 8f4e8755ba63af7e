"""Whole trainings: which are made, what they take, and what they report."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from basics import tiny
from training_helpers import WHOLE, measured

from dpexp.config.job import BASELINE, CANDIDATE
from dpexp.launchers.local import LocalLauncher
from dpexp.measurement.trainer import ArmSteps
from dpexp.measurement.whole_trainings import WholeTrainings
from dpexp.processes.shared_memory import SharedTensors
from dpexp.results import storage
from dpexp.train import loop
from dpexp.train.data.dataset import load
from dpexp.train.models import architectures
from dpexp.train.strategies import Strategy
from dpexp.train.training_clock import TrainingClock
from dpexp.train.worker import parameters_sha256


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

    def run(launcher, spec):
        reports.append(correct(launcher, spec))
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
        ([], 0.01, 12 * (0.01 + 0.02) + 0.6, True),  # of both, with their starts and warm-up
        (["measurement.baseline=none"], 0.01, 12 * 0.01 + 0.3, True),
        ([], 1.0, 0.0, False),  # too long
        (["measurement.whole_trainings=never"], 0.01, 0.0, False),
        ([WHOLE], 0.01, 0.0, True),  # on top of the budget
        ([WHOLE], 1.0, 0.0, True),
        (["target_accuracy=0.5", "measurement.whole_trainings=never"], 0.01, 0.0, True),
    ],
)
def test_time_is_reserved_for_short_whole_trainings(settings, step_seconds, reserved, made):
    trainings = WholeTrainings(tiny("measurement.whole_trainings=auto", *settings, "measurement.max_seconds=9"))
    seconds = {CANDIDATE: step_seconds, BASELINE: 2 * step_seconds, "others": 100.0}
    steps = {name: ArmSteps(step_seconds=one, min_step_seconds=one) for name, one in seconds.items()}
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
    strategy.reset()
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
    strategy.reset()
    list(loop.train(baseline, dataset, strategy, TrainingClock(strategy)))
    assert sum(visited) == baseline.epochs * 48
