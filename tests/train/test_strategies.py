"""The contract that every strategy keeps, whatever it does inside."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import contract
import pytest
from basics import tiny, two_hosts

from dpexp.processes import launch
from dpexp.processes.world import WorldSpec
from dpexp.train.data.dataset import load
from dpexp.train.models.initial_state import initial_state
from dpexp.train.strategies import strategy_class
from testbed.namespaces import HOSTS


@dataclass(frozen=True)
class Case:
    """Some workers of a strategy."""

    strategy: str  # and overrides
    workers: int
    namespaces: int = 0  # on so many hosts, which only the network joins; 0: all workers share this machine's

    def __str__(self) -> str:
        return f"{self.strategy}-{self.workers}" + (f"-on-{self.namespaces}-hosts" if self.namespaces else "")


SHARED_MEMORY = "ddp strategy.exchange=shared_memory"
CASES = [
    Case("sequential", 1),  # which one worker of any strategy is
    Case("sync_dp", 2),
    Case("sync_dp", 3),
    Case("emulated", 3),
    Case("ddp", 2),
    Case("ddp", 3),
    Case("ddp", 4, namespaces=2),
    Case(SHARED_MEMORY, 3),
    Case(SHARED_MEMORY, 2, namespaces=2),
    Case(SHARED_MEMORY, 4, namespaces=2),
]


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request):
    return request.param


@pytest.fixture(scope="module")
def reports(case) -> dict[str, list[Any]]:
    """By script of contract.py, what all processes have reported."""
    strategy = [f"strategy={case.strategy.split()[0]}", *case.strategy.split()[1:]]
    config = tiny(*strategy, f"workers={case.workers}")
    dataset = load(config)
    initial = initial_state(config, dataset)
    shared = _over_the_link(config) if case.namespaces else strategy_class(config).share(config, initial)
    arguments = [(config, dataset, initial, own) for own in shared]
    with two_hosts() if case.namespaces else contextlib.nullcontext():
        of_processes = launch.launch(WorldSpec(contract.run_checks, arguments))
    return {script: [report[script] for report in of_processes] for script in of_processes[0]}


def _over_the_link(config):
    """Rank 0 serves the store."""
    size = config.workers // len(HOSTS)
    places = [(name, local_rank) for name in HOSTS for local_rank in range(size)]
    return [contract.OnHost(name, serves_store=(name, local_rank) == places[0]) for name, local_rank in places]


def test_the_processes_together_play_every_rank_once(case, reports):
    ranks = [rank for report in reports["ranks_played"] for rank in report]
    assert ranks == list(range(case.workers))


def test_each_host_has_a_network_of_its_own(case, reports):
    """Else the cases on two hosts would show nothing."""
    assert len(set(reports["network"])) == max(1, case.namespaces)


def test_replicas_are_equal_before_and_after_and_can_start_over(reports):
    hashes = reports["hashes_around_training"]
    before, after, again = ({sha for report in hashes for sha in report[part]} for part in range(3))
    assert len(before) == len(after) == 1
    assert before == again != after


def test_no_gradient_is_carried_into_the_next_step(reports):
    assert all(all(report) for report in reports["gradients_left"])


def test_a_step_applies_the_mean_gradient_of_the_whole_uneven_batch(reports):
    assert all(error < 1e-12 for error in reports["update_of_one_step"])


def test_a_step_adds_up_the_losses_of_its_own_samples(reports):
    for loss, expected in reports["loss_of_one_step"]:
        assert loss == pytest.approx(expected, rel=1e-12)


def test_a_broadcast_gives_all_ranks_the_numbers_of_rank_0(reports):
    for numbers in reports["received"]:
        assert numbers == [[7, 0], [8, 0]]
