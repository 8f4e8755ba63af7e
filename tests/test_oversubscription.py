"""More workers than cores: each stays on a core, and cores have as many as can be alike."""

from __future__ import annotations

import os
from collections import Counter

import pytest
import torch
from conftest import tiny

from dpexp.data.dataset import load
from dpexp.machine.environment import usable_cores
from dpexp.models import architectures
from dpexp.models.initial_state import initial_state
from dpexp.processes import launch
from dpexp.strategies import strategy_class

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system has no affinity to a core")


def cores_of_a_worker(rank, config, dataset, initial, shared, notify):
    torch.set_num_threads(1)
    model = architectures.build(config.model, dataset.input_shape, dataset.classes).to(torch.float64)
    strategy_class(config)(config, rank, model, initial, shared)
    return sorted(os.sched_getaffinity(0))


def cores(workers: int) -> list[list[int]]:
    """Where each of so many workers may run."""
    config = tiny("strategy=sync_dp", f"workers={workers}", f"batch.size={workers}")
    dataset = load(config)
    initial = initial_state(config, dataset)
    shared = strategy_class(config).share(config, initial)
    try:
        arguments = [(config, dataset, initial, part) for part in shared]
        return launch.launch(cores_of_a_worker, arguments, lambda notice: None)
    finally:
        for part in shared:
            part.close()


def test_workers_that_share_cores_are_spread_evenly_and_stay():
    count = len(os.sched_getaffinity(0))
    found = cores(2 * count + 1)
    assert all(len(places) == 1 for places in found)
    assert sorted(Counter(core for (core,) in found).values()) == [2] * (count - 1) + [3]


@pytest.mark.skipif(usable_cores() < 2, reason="one core")
def test_workers_that_have_a_core_each_go_where_the_scheduler_wants():
    assert cores(2) == [sorted(os.sched_getaffinity(0))] * 2
