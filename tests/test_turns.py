"""Trainings that take turns are still whole trainings: only the clock stands in between."""

from __future__ import annotations

import itertools
import threading
from multiprocessing import Pipe

import pytest
import torch
from conftest import tiny

from dpexp.data.dataset import load
from dpexp.launchers import conductor
from dpexp.launchers.conductor import Conductor
from dpexp.launchers.local import LocalLauncher
from dpexp.models.initial_state import initial_state
from dpexp.processes.threads import wait_until_idle
from dpexp.training.turns import Plan, Waiting
from dpexp.training.worker import Work

SLOW = ["epochs=4", "batch.size=6"]  # 68 steps


def works(*strategies, settings=()):
    """A work for each strategy, beside the sequential baseline."""
    config = tiny(*SLOW, *settings)
    dataset = load(config)
    initial = initial_state(config, dataset)
    configs = {"baseline": config.baseline()} | {
        name: tiny(*SLOW, *settings, f"strategy={name}") for name in strategies
    }
    return {name: Work(one, dataset, initial, "torch", evaluate=True, checkpoint=None) for name, one in configs.items()}


@pytest.mark.parametrize("strategy", ["sync_dp", "ddp", "emulated"])
def test_in_turns_and_in_one_piece_the_parameters_are_the_same(monkeypatch, strategy):
    monkeypatch.setattr(conductor, "TURN_SECONDS", 1e-3)
    both = works(strategy, settings=["workers=2"])
    in_turns = LocalLauncher().run_in_turns(both, lambda done: None)
    for name, work in both.items():
        in_one_piece = LocalLauncher().run(work)
        assert in_turns[name][0].parameters_sha256 == in_one_piece[0].parameters_sha256
        assert in_turns[name][0].epoch_loss_sums == in_one_piece[0].epoch_loss_sums
        assert len(in_turns[name][0].turn_seconds) > 1
        assert len(in_one_piece[0].turn_seconds) == 1
        assert in_turns[name][0].handover_seconds > in_one_piece[0].handover_seconds == 0


def test_all_ranks_and_all_trainings_have_as_many_turns(monkeypatch):
    monkeypatch.setattr(conductor, "TURN_SECONDS", 1e-3)
    reports = LocalLauncher().run_in_turns(works("sync_dp", settings=["workers=3"]), lambda done: None)
    assert len({len(report.turn_seconds) for ranks in reports.values() for report in ranks}) == 1


def test_a_target_accuracy_is_evaluated_with_the_clock_stopped_in_turns_too(monkeypatch):
    monkeypatch.setattr(conductor, "TURN_SECONDS", 1e-3)
    settings = ["workers=2", "target_accuracy=0.5"]
    (_, (report, _)) = LocalLauncher().run_in_turns(works("sync_dp", settings=settings), lambda done: None).values()
    assert len(report.epoch_seconds) == len(report.epoch_accuracies) == 4
    assert report.epoch_seconds == sorted(report.epoch_seconds)
    assert report.epoch_seconds[-1] <= sum(report.turn_seconds) * (1 + 1e-9)


def conducted(updates, step_seconds, oversubscribed=False):
    """Which world got which message, when each sleeps again at once."""
    pipes = [Pipe(duplex=False) for _ in updates]
    done, granted = [], []
    chief = Conductor(updates, [[sender] for _, sender in pipes], done.append, oversubscribed)
    for world in range(len(updates)):
        chief.on_notice(world, 0, Waiting())
    while True:
        ready = [world for world, (receiver, _) in enumerate(pipes) if receiver.poll()]
        if not ready:
            return granted, done
        for world in ready:
            granted.append((world, pipes[world][0].recv()))
            chief.on_notice(world, 0, Waiting(step_seconds[world]))


def plans_of(updates, step_seconds):
    """The plan of each world."""
    plans = {world: plan for world, plan in conducted(updates, step_seconds)[0] if plan is not None}
    return [plans[world] for world in range(len(updates))]


def test_each_world_warms_up_alone_and_then_their_turns_alternate():
    granted, done = conducted([100, 100], [0.01, 0.005])
    assert granted[:2] == [(0, None), (1, None)]
    turns = [world for world, plan in granted if plan is not None]
    assert turns[:6] == [0, 1, 1, 0, 0, 1]
    assert turns.count(0) == turns.count(1) == granted[2][1].turns
    assert granted[-2:] == [(0, None), (1, None)]
    assert (done[0], done[-1]) == (0, 1)


def test_the_slowest_world_decides_how_many_turns_there_are():
    assert plans_of([1000, 500], [0.0003, 0.0004])[0].turns == 10
    assert plans_of([30, 20], [0.1, 0.1])[0].turns == 20  # a turn has a step at least


def test_the_turns_of_a_much_faster_world_stay_long_enough_and_have_their_own_untimed_steps():
    slow, fast = plans_of([300, 300], [0.01, 0.0005])
    assert slow.turns == fast.turns == 10  # of 0.3 s, and of half of 30 ms
    assert (slow.lead_steps, fast.lead_steps) == (0, 6)


def test_more_threads_than_cores_get_longer_turns():
    plans = [conducted([1000, 1000], [0.001, 0.001], crowded)[0][2][1] for crowded in (False, True)]
    assert plans[0].turns > plans[1].turns
    assert plans[0].lead_steps < plans[1].lead_steps


def test_a_plan_covers_every_step_once():
    bounds = Plan(turns=7, lead_steps=1).bounds(100)
    assert (bounds[0], bounds[-1], len(bounds)) == (0, 100, 8)
    assert {after - before for before, after in itertools.pairwise(bounds)} == {14, 15}


def test_a_pool_that_spins_is_waited_for():
    spinning, seen = threading.Event(), []

    def spin():
        while not spinning.is_set():
            torch.rand(1000).sum()

    thread = threading.Thread(target=spin)
    thread.start()
    ender = threading.Timer(0.02, spinning.set)
    ender.start()
    wait_until_idle()
    seen.append(spinning.is_set())
    thread.join()
    assert seen == [True]
