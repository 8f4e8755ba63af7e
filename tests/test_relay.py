"""More workers than cores: the ranks of a core take turns, and the mathematics stay the same."""

from __future__ import annotations

import pytest
import torch
from conftest import tiny
from training_helpers import assert_same, trained_state

from dpexp.processes import launch
from dpexp.processes.shared_memory import SharedTensors
from dpexp.strategies import sync_dp
from dpexp.strategies.relay import Relay

ROUNDS = 50


def run_together(rank, relay, shared, notify):
    """In each turn note it; nobody else of the team may do so meanwhile."""
    turns = shared["turns"][relay.team]
    for _ in range(ROUNDS):
        relay.receive()
        turns[0] += 1
        position = int(turns[0])
        turns[position] = rank
        relay.pass_on()


@pytest.mark.parametrize(("ranks", "teams"), [(2, 1), (5, 2)])
def test_the_ranks_of_a_team_go_one_after_the_other(ranks, teams):
    relays = Relay.create(ranks, teams)
    with SharedTensors.allocate({"turns": ((teams, 1 + ranks * ROUNDS), torch.int64)}) as shared:
        launch.launch(run_together, [(relay, shared) for relay in relays], lambda notice: None)
        for team in range(teams):
            members = list(range(team, ranks, teams))
            assert shared["turns"][team, 1 : 1 + len(members) * ROUNDS].tolist() == members * ROUNDS
    for relay in relays:
        relay.close()


def test_who_has_no_team_waits_for_nobody():
    relays = Relay.create(3, 2)
    assert [relay.team for relay in relays] == [0, 1, 0]
    assert [relay.batons is None for relay in relays] == [False, True, False]
    assert [(relay.is_first, relay.is_last) for relay in relays] == [(True, False), (True, True), (False, True)]


@pytest.mark.parametrize(("workers", "cores"), [(4, 1), (4, 3), (3, 2)])
@pytest.mark.parametrize(
    "overrides",
    [
        ["model.hidden=[200]", "data.shape=[1,13,13]", "batch.accumulation=2"],  # with a layer that is large
        ["optimizer=adam", "optimizer.clip_norm=0.1"],
        ["data.size=25"],  # a batch of 24, then one of a single sample
        ["model=custom", "model.builder=user_models:with_an_unused_layer"],
    ],
    ids=["late, in parts", "clipped", "too few samples", "unused"],
)
def test_workers_that_share_cores_end_at_the_sequential_parameters(tmp_path, monkeypatch, workers, cores, overrides):
    expected = trained_state(tiny("strategy=sequential", *overrides), tmp_path)
    monkeypatch.setattr(sync_dp, "usable_cores", lambda: cores)
    assert_same(trained_state(tiny(f"workers={workers}", *overrides), tmp_path), expected, 1e-12)
