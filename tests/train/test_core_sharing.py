"""More workers than cores: the ranks of a core take turns, and the mathematics stay the same."""

from __future__ import annotations

import pytest
import torch
from basics import tiny
from training_helpers import assert_same, trained_state

from dpexp.processes import launch
from dpexp.processes.shared_memory import SharedTensors
from dpexp.processes.world import WorldSpec
from dpexp.train.strategies import core_sharing
from dpexp.train.strategies.core_sharing import CoreShare

ROUNDS = 50


def take_turns(rank, turn, shared, notify):
    """In each turn note it; nobody else of the group may do so meanwhile."""
    taken = shared["taken"][turn.group]
    for _ in range(ROUNDS):
        turn.wait()
        taken[0] += 1
        position = int(taken[0])
        taken[position] = rank
        turn.pass_on()


@pytest.mark.parametrize(("ranks", "groups"), [(2, 1), (5, 2)])
def test_the_ranks_of_a_group_go_one_after_the_other(ranks, groups):
    turns = CoreShare.create(ranks, groups)
    shared = SharedTensors.allocate({"taken": ((groups, 1 + ranks * ROUNDS), torch.int64)})
    launch.launch(WorldSpec(take_turns, [(turn, shared) for turn in turns]))
    for group in range(groups):
        members = list(range(group, ranks, groups))
        assert shared["taken"][group, 1 : 1 + len(members) * ROUNDS].tolist() == members * ROUNDS


def test_who_is_alone_waits_for_no_other():
    turns = CoreShare.create(3, 2)
    assert [turn.group for turn in turns] == [0, 1, 0]
    for _ in range(ROUNDS):
        turns[1].wait()
        turns[1].pass_on()
    assert [(turn.is_first, turn.is_last) for turn in turns] == [(True, False), (True, True), (False, True)]


@pytest.mark.parametrize(("workers", "cores"), [(4, 1), (4, 3), (3, 2)])
@pytest.mark.parametrize(
    "overrides",
    [
        ["model.hidden=[200]", "data.shape=[1,13,13]"],  # with a layer that is large
        ["optimizer=adam"],
        ["data.size=25"],  # a batch of 24, then one of a single sample
        ["model=custom", "model.builder=user_models:with_an_unused_layer"],
    ],
    ids=["large", "adam", "too few samples", "unused"],
)
def test_workers_that_share_cores_end_at_the_sequential_parameters(tmp_path, monkeypatch, workers, cores, overrides):
    expected = trained_state(tiny("strategy=sequential", *overrides), tmp_path)
    monkeypatch.setattr(core_sharing, "usable_cores", lambda: cores)
    assert_same(trained_state(tiny(f"workers={workers}", *overrides), tmp_path), expected, 1e-12)
