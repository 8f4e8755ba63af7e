"""w workers end where one worker with the same global batch ends, and a strategy that doesn't is caught."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from basics import tiny
from training_helpers import assert_same, trained_here, trained_state

from dpexp.errors import WorkerError
from dpexp.measurement.built_in_trainer import check_reports
from dpexp.train import loop
from dpexp.train.strategies import Emulated

OPTIMIZERS = {
    "sgd": ["optimizer.lr=0.1"],
    "sgd momentum nesterov decay": [
        "optimizer.lr=0.1",
        "optimizer.momentum=0.9",
        "optimizer.nesterov=true",
        "optimizer.weight_decay=0.01",
    ],
    "adam": ["optimizer=adam", "optimizer.weight_decay=0.01"],
    "adamw": ["optimizer=adamw"],
}


@pytest.fixture(scope="module")
def sequential(tmp_path_factory):
    """Where sequential training ends, by overrides; trained once each."""
    known: dict[tuple[str, ...], dict[str, torch.Tensor]] = {}

    def state(*overrides: str) -> dict[str, torch.Tensor]:
        if overrides not in known:
            config = tiny("strategy=sequential", *overrides)
            known[overrides] = trained_state(config, tmp_path_factory.mktemp("sequential"))
        return known[overrides]

    return state


@pytest.mark.parametrize("strategy", ["sync_dp", "emulated", "ddp"])
class TestWorkersEndAtTheSequentialParameters:
    @pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
    def test_with_any_optimizer(self, sequential, tmp_path, strategy, optimizer):
        config = tiny(f"strategy={strategy}", "workers=3", *optimizer)
        assert_same(trained_state(config, tmp_path), sequential(*optimizer), 1e-12)

    @pytest.mark.parametrize("workers", [2, 4])
    def test_with_any_number_of_workers(self, sequential, tmp_path, strategy, workers):
        config = tiny(f"strategy={strategy}", f"workers={workers}", "optimizer.momentum=0.9")
        assert_same(trained_state(config, tmp_path), sequential("optimizer.momentum=0.9"), 1e-12)


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("model", [[], ["model.hidden=[200]", "data.shape=[1,13,13]"]], ids=["small", "large"])
def test_shared_memory_in_place_of_gloo_ends_at_the_sequential_parameters(sequential, tmp_path, workers, model):
    config = tiny("strategy=ddp", "strategy.exchange=shared_memory", f"workers={workers}", *model)
    assert_same(trained_state(config, tmp_path), sequential(*model), 1e-12)


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("strategy", ["sync_dp", "emulated", "ddp"])
def test_in_single_precision_they_agree_up_to_rounding(sequential, tmp_path, strategy, workers):
    few_steps = ["dtype=float32", "epochs=1"]
    config = tiny(f"strategy={strategy}", f"workers={workers}", *few_steps)
    assert_same(trained_state(config, tmp_path), sequential(*few_steps), 1e-6)


@pytest.mark.parametrize(
    "model",
    [
        ["model=cnn", "model.channels=[3]", "model.hidden=5"],
        ["model=mlp", "model.hidden=[]"],
        ["model=mlp", "model.hidden=[200]", "data.shape=[1,13,13]"],  # with a layer that is large
        ["model=custom", "model.builder=user_models:of_a_derivative", "data.shape=[1,13,13]"],
    ],
)
def test_other_models_agree_too(sequential, tmp_path, model):
    assert_same(trained_state(tiny("workers=3", *model), tmp_path), sequential(*model), 1e-12)


@pytest.mark.parametrize(
    "strategy",
    [["sync_dp"], ["emulated"], ["ddp", "strategy.find_unused_parameters=true"]],
    ids=lambda own: own[0],
)
def test_unused_and_frozen_parameters_agree_too(sequential, tmp_path, strategy):
    own = ["model=custom", "model.builder=user_models:with_an_unused_layer", "optimizer=adamw"]
    config = tiny(f"strategy={strategy[0]}", *strategy[1:], "workers=2", *own)
    assert_same(trained_state(config, tmp_path), sequential(*own), 1e-12)


WITH_BATCHNORM = ["model=custom", "model.builder=user_models:with_batchnorm", "optimizer.lr=0.1"]


def test_batch_normalization_sees_local_batches(sequential, tmp_path):
    with pytest.raises(AssertionError):
        assert_same(trained_state(tiny("workers=2", *WITH_BATCHNORM), tmp_path), sequential(*WITH_BATCHNORM), 1e-3)


def test_per_worker_batches_equal_one_worker_with_the_larger_batch(sequential, tmp_path):
    config = tiny("workers=3", "batch.scope=per_worker", "batch.size=8")
    assert_same(trained_state(config, tmp_path), sequential(), 1e-12)


@pytest.mark.parametrize("strategy", ["sync_dp", "emulated", "ddp"])
def test_more_workers_than_samples_in_the_last_batch(sequential, tmp_path, strategy):
    overrides = ["data.size=25"]  # a batch of 24, then one of a single sample for four workers
    config = tiny(f"strategy={strategy}", "workers=4", *overrides)
    assert_same(trained_state(config, tmp_path), sequential(*overrides), 1e-12)


@pytest.mark.parametrize("strategy", ["sync_dp", "ddp", "ddp strategy.exchange=shared_memory"])
def test_a_run_can_be_repeated_to_the_bit(tmp_path, strategy):
    """Replicas are compared to the bit in every training, too."""
    config = tiny(*f"strategy={strategy}".split(), "workers=3", "dtype=float32")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert_same(trained_state(config, tmp_path / "a"), trained_state(config, tmp_path / "b"), 0.0)


def test_batch_norm_sees_local_batches_the_same_way_in_both_strategies(tmp_path):
    real, emulated = (
        trained_state(tiny(f"strategy={strategy}", "workers=2", *WITH_BATCHNORM), tmp_path)
        for strategy in ("sync_dp", "emulated")
    )
    assert_same(real, emulated, 1e-12)


@pytest.mark.parametrize("strategy", ["sync_dp", "emulated", "ddp"])
def test_every_strategy_trains_with_the_scaled_rate(strategy, tmp_path):
    shared = ["batch.scope=per_worker", "batch.size=8"]
    scaled = tiny(f"strategy={strategy}", "workers=3", *shared, "optimizer.lr=0.01", "optimizer.lr_rule=linear")
    plain = tiny("strategy=sequential", "workers=1", "batch.size=24", "optimizer.lr=0.03")
    assert_same(trained_state(scaled, tmp_path), trained_state(plain, tmp_path), 1e-12)


class TestSeededBugs:
    """Three classic mistakes, put in on purpose: the checks above must see each."""

    config = property(lambda self: tiny("strategy=emulated", "workers=3"))

    def assert_caught(self, sequential, tmp_path):
        with pytest.raises(AssertionError):
            assert_same(trained_here(self.config, tmp_path), sequential(), 1e-12)

    def test_without_a_bug_this_process_gives_the_same(self, sequential, tmp_path):
        assert_same(trained_here(self.config, tmp_path), sequential(), 1e-12)

    def test_an_unweighted_tail_is_caught(self, sequential, tmp_path, monkeypatch):
        def mean_of_means(config, strategy, inputs, labels, batch, loss_sum):
            for replica in strategy.replicas:
                own = loop.shard(batch, replica.rank, config.workers)
                (F.cross_entropy(replica.model(inputs[own]), labels[own]) / config.workers).backward()
            strategy.update()

        monkeypatch.setattr(loop, "step", mean_of_means)
        self.assert_caught(sequential, tmp_path)

    def test_overlapping_shards_are_caught(self, sequential, tmp_path, monkeypatch):
        correct = loop.shard
        monkeypatch.setattr(loop, "shard", lambda batch, rank, size: correct(batch, max(rank, 1), size))
        self.assert_caught(sequential, tmp_path)

    def unequal_start(self, monkeypatch):
        correct = Emulated.reset

        def start(strategy):
            correct(strategy)
            with torch.no_grad():
                next(strategy.replicas[1].model.parameters()).add_(1e-3)

        monkeypatch.setattr(Emulated, "reset", start)

    def test_an_unequal_start_is_caught_by_the_equivalence(self, sequential, tmp_path, monkeypatch):
        self.unequal_start(monkeypatch)
        self.assert_caught(sequential, tmp_path)

    def test_an_unequal_start_is_caught_in_every_run(self, tmp_path, monkeypatch):
        from dpexp.train import worker
        from dpexp.train.data.dataset import load
        from dpexp.train.models.initial_state import initial_state

        self.unequal_start(monkeypatch)
        dataset = load(self.config)
        spec = worker.TrainingSpec(self.config, dataset, initial_state(self.config, dataset))
        report = worker.run(0, spec, None, None, lambda notice: None)
        with pytest.raises(WorkerError, match=r"replicas differ at the end: ranks \[1\]"):
            check_reports([report])
