"""The contract that every strategy keeps, whatever it does inside."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny

from dpexp.data.dataset import load
from dpexp.data.sharding import shard
from dpexp.models import architectures
from dpexp.models.initial_state import initial_state
from dpexp.processes import launch
from dpexp.strategies import strategy_class
from dpexp.training import evaluation, loop

# One worker of any strategy is `sequential`.
CASES = [
    ("sequential", 1),
    ("sync_dp", 2),
    ("sync_dp", 3),
    ("emulated", 3),
    ("ddp", 2),
    ("ddp", 3),
    ("hybrid_dp", 3),
    ("hybrid_dp strategy.hosts=2", 2),
    ("hybrid_dp strategy.hosts=2", 4),
]


def play(rank, script, config, dataset, initial, shared, notify):
    """In each process of a group: build the strategy as a worker does, then run a script of this file."""
    torch.set_num_threads(1)
    model = architectures.build(config.model, dataset.input_shape, dataset.classes).to(getattr(torch, config.dtype))
    strategy = strategy_class(config)(config, rank, model, initial, shared)
    strategy.start()
    return globals()[script](config, dataset, strategy)


def played(script, strategy, workers):
    """The reports of all processes of a group."""
    own = ["model=custom", "model.builder=user_models:with_batchnorm", "batch.sync_batchnorm=true"]
    config = tiny(*f"strategy={strategy}".split(), f"workers={workers}", *(own if script == "gathered" else []))
    dataset = load(config)
    initial = initial_state(config, dataset)
    shared = strategy_class(config).share(config, initial)
    try:
        return launch.launch(play, [(script, config, dataset, initial, own) for own in shared], lambda notice: None)
    finally:
        for own in shared:
            if hasattr(own, "close"):
                own.close()


def steps(config, dataset, strategy, count):
    inputs, labels = dataset.tensors["train_inputs"], dataset.tensors["train_labels"]
    for batch in torch.arange(len(inputs)).split(config.global_batch_size)[:count]:
        loop.step(config, strategy, inputs, labels, batch, inputs.new_zeros(()))
    strategy.barrier()


def ranks_played(config, dataset, strategy):
    return [replica.rank for replica in strategy.replicas]


def hashes_around_training(config, dataset, strategy):
    before = [evaluation.parameters_sha256(replica.model) for replica in strategy.replicas]
    steps(config, dataset, strategy, 3)
    after = [evaluation.parameters_sha256(replica.model) for replica in strategy.replicas]
    strategy.start()
    return before, after, [evaluation.parameters_sha256(replica.model) for replica in strategy.replicas]


def gradients_left(config, dataset, strategy):
    steps(config, dataset, strategy, 1)
    parameters = [p for replica in strategy.replicas for p in replica.model.parameters()]
    return [p.grad is None or not p.grad.any() for p in parameters]


def update_of_one_step(config, dataset, strategy):
    """The parameters' change by a step of plain SGD, divided by -lr: the gradient that was applied."""
    model = strategy.replicas[0].model
    before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    inputs, labels = dataset.tensors["train_inputs"], dataset.tensors["train_labels"]
    batch = torch.arange(5)
    loop.step(config, strategy, inputs, labels, batch, inputs.new_zeros(()))
    strategy.barrier()
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    applied = (before - after) / config.optimizer.lr

    alone = architectures.build(config.model, dataset.input_shape, dataset.classes).to(torch.float64)
    alone.load_state_dict(initial_state(config, dataset))
    F.cross_entropy(alone(inputs[batch]), labels[batch]).backward()
    expected = torch.cat([p.grad.flatten() for p in alone.parameters()])
    return (applied - expected).abs().max().item()


def loss_of_one_step(config, dataset, strategy):
    inputs, labels = dataset.tensors["train_inputs"], dataset.tensors["train_labels"]
    batch = torch.arange(5)
    own = torch.cat([shard(batch, replica.rank, config.workers) for replica in strategy.replicas])
    with torch.no_grad():
        expected = F.cross_entropy(strategy.replicas[0].model(inputs[own]), labels[own], reduction="sum").item()
    strategy.barrier()
    loss_sum = inputs.new_zeros(())
    loop.step(config, strategy, inputs, labels, batch, loss_sum)
    return loss_sum.item(), expected


pytestmark = pytest.mark.parametrize(("strategy", "workers"), CASES)


def test_the_processes_together_play_every_rank_once(strategy, workers):
    ranks = [rank for report in played("ranks_played", strategy, workers) for rank in report]
    assert ranks == list(range(workers))


def test_replicas_are_equal_before_and_after_and_can_start_over(strategy, workers):
    reports = played("hashes_around_training", strategy, workers)
    before, after, again = ({sha for report in reports for sha in report[part]} for part in range(3))
    assert len(before) == len(after) == 1
    assert before == again != after


def test_no_gradient_is_carried_into_the_next_step(strategy, workers):
    assert all(all(report) for report in played("gradients_left", strategy, workers))


def test_a_step_applies_the_mean_gradient_of_the_whole_uneven_batch(strategy, workers):
    assert all(error < 1e-12 for error in played("update_of_one_step", strategy, workers))


def test_a_step_adds_up_the_losses_of_its_own_samples(strategy, workers):
    for loss, expected in played("loss_of_one_step", strategy, workers):
        assert loss == pytest.approx(expected, rel=1e-12)


def test_a_broadcast_gives_all_ranks_the_numbers_of_rank_0(strategy, workers):
    for numbers in played("received", strategy, workers):
        assert numbers == [[7, 0], [8, 0]]


def test_gathering_gives_all_ranks_the_values_of_each_in_order(strategy, workers):
    if strategy != "emulated":  # which plays all ranks in one process, and is refused where ranks gather
        for first, second in played("gathered", strategy, workers):
            assert first == [[rank, 7] for rank in range(workers)]
            assert second == [[rank + 1] for rank in range(workers)]


def gathered(config, dataset, strategy):
    rank = strategy.replicas[0].rank
    first = strategy.gather(torch.tensor([rank, 7.0], dtype=torch.float64)).tolist()
    return first, strategy.gather(torch.tensor([rank + 1.0], dtype=torch.float64)).tolist()


def received(config, dataset, strategy):
    rank = strategy.replicas[0].rank
    return [strategy.broadcast([first + rank, rank]) for first in (7, 8)]
