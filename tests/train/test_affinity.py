"""Workers that leave no core free stay on one each, and cores have as many as can be alike."""

from __future__ import annotations

import os
from collections import Counter

import pytest
import torch
from basics import tiny

from dpexp.processes import launch
from dpexp.processes.world import WorldSpec
from dpexp.train.data.dataset import load
from dpexp.train.models import architectures
from dpexp.train.models.initial_state import initial_state
from dpexp.train.strategies import strategy_class

COUNT = len(os.sched_getaffinity(0))


def cores_of_a_worker(rank, config, dataset, initial, shared, notify):
    torch.set_num_threads(1)
    model = architectures.build_model(config.model, dataset.input_shape, dataset.classes).to(torch.float64)
    strategy_class(config)(config, rank, model, initial, shared)
    return sorted(os.sched_getaffinity(0))


def cores(workers: int, *overrides: str) -> list[list[int]]:
    """Where each of so many workers may run."""
    config = tiny(f"workers={workers}", f"batch.size={workers}", *overrides)
    dataset = load(config)
    initial = initial_state(config, dataset)
    shared = strategy_class(config).share(config, initial)
    return launch.launch(WorldSpec(cores_of_a_worker, [(config, dataset, initial, part) for part in shared]))


@pytest.mark.parametrize("each", [1, 2])
def test_workers_that_leave_no_core_free_are_spread_evenly_and_stay(each):
    found = cores(each * COUNT)
    assert all(len(places) == 1 for places in found)
    assert sorted(Counter(core for (core,) in found).values()) == [each] * COUNT


@pytest.mark.skipif(COUNT < 3, reason="two workers leave no core free")
def test_workers_that_leave_a_core_free_go_where_the_scheduler_wants():
    assert cores(2) == [sorted(os.sched_getaffinity(0))] * 2
