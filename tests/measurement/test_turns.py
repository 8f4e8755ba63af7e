"""Programs that take turns: a segment makes the steps of its training, and a round gives each arm a turn."""

from __future__ import annotations

import collections
import itertools
import statistics
import threading
from multiprocessing import Pipe

import pytest
import torch
from basics import tiny

from dpexp.errors import ScriptEnded
from dpexp.launchers.local import LocalLauncher
from dpexp.measurement import built_in_trainer
from dpexp.measurement.built_in_trainer import OVERSUBSCRIBED_PACE, PACE, BuiltInTrainer
from dpexp.measurement.rounds import JITTER, MIN_ROUNDS, WARMUP_SECONDS, Rounds
from dpexp.measurement.trainer import Pace
from dpexp.processes.turn import Turn
from dpexp.train.data.dataset import load
from dpexp.train.models.initial_state import initial_state
from dpexp.train.recorder import Recorder
from dpexp.train.training_clock import SegmentClock, _wait_until_idle
from dpexp.train.worker import TrainingSpec

# Segments.

WHOLE_BATCHES = ["data.size=96", "epochs=2"]  # 4 steps an epoch


def specs(*overrides, in_turns=True):
    """A program of this job, beside its sequential baseline."""
    config = tiny(*overrides)
    dataset = load(config)
    initial = initial_state(config, dataset)
    return {
        name: TrainingSpec(one, dataset, initial, in_turns=in_turns)
        for name, one in (("baseline", config.baseline()), ("candidate", config))
    }


def in_turns(programs, *turns):
    """What each program answered, and the reports of its processes; after each turn of one, the other has its own."""
    answers = {name: [] for name in programs}
    with LocalLauncher().segments(programs) as running:
        for turn, name in itertools.product(turns, programs):
            answers[name].append(running.run_turn(name, turn))
        return answers, running.end()


@pytest.mark.parametrize("strategy", ["sync_dp", "ddp", "emulated", "ddp strategy.exchange=shared_memory"])
def test_in_turns_and_in_one_piece_the_parameters_are_the_same(strategy):
    overrides = [*WHOLE_BATCHES, "workers=2", *f"strategy={strategy}".split()]
    _, reports = in_turns(specs(*overrides), Turn(0, 1), Turn(2, 3), Turn(1, 1))
    for name, spec in specs(*overrides, in_turns=False).items():
        for turned, whole in zip(reports[name], LocalLauncher().run(spec), strict=True):
            assert turned.parameters_sha256 == whole.parameters_sha256


def test_turns_change_no_random_number_that_a_model_draws():
    overrides = [*WHOLE_BATCHES, "workers=2", "model=custom", "model.builder=user_models:with_dropout"]
    _, reports = in_turns(specs(*overrides), Turn(3, 1), Turn(0, 4))
    (whole, _) = LocalLauncher().run(specs(*overrides, in_turns=False)["candidate"])
    assert reports["candidate"][0].parameters_sha256 == whole.parameters_sha256


@pytest.mark.parametrize("strategy", ["sync_dp", "ddp", "emulated"])
def test_a_training_restarts_at_its_end(strategy):
    """Two epochs of four steps: after eleven steps it is where it was after three."""
    programs = specs(*WHOLE_BATCHES, "workers=2", f"strategy={strategy}")
    (_, three), (_, eleven) = in_turns(programs, Turn(1, 2)), in_turns(programs, Turn(3, 4), Turn(0, 4))
    for name in programs:
        assert {tuple(one.parameters_sha256) for one in three[name]} == {
            tuple(one.parameters_sha256) for one in eleven[name]
        }


def test_all_ranks_make_as_many_steps_and_only_timed_ones_are_reported():
    answers, reports = in_turns(specs("workers=3"), Turn(0, 2), Turn(5, 7), Turn(1, 20))
    for name, ranks in reports.items():
        assert [len(seconds) for seconds in answers[name]] == [2, 7, 20]
        assert {len(report.phases["compute"]) for report in ranks} == {29}
        assert len({sha256 for report in ranks for sha256 in report.parameters_sha256}) == 1


def test_the_phases_of_timed_steps_lie_within_their_seconds():
    answers, reports = in_turns(specs("workers=1"), Turn(3, 10))
    total = sum(sum(seconds) for seconds in reports["candidate"][0].phases.values())
    assert 0 < total <= sum(answers["candidate"][0])


def test_the_time_between_epochs_is_known():
    _, reports = in_turns(specs(*WHOLE_BATCHES), Turn(0, 9))
    for name in reports:
        assert len(reports[name][0].between_epochs_seconds) == 3
        assert min(reports[name][0].between_epochs_seconds) >= 0


class Alone:
    """The ranks of a clock: one process, which remembers how often it was started."""

    def __init__(self) -> None:
        self.recorder = Recorder(is_on=False)
        self.starts = 0

    def reset(self) -> None:
        self.starts += 1

    def barrier(self) -> None:
        pass

    def broadcast(self, numbers: list[int]) -> list[int]:
        return numbers


def clock_of(*turns):
    """A clock, its ranks, and its answers; its turns wait in the pipe."""
    turn_pipe, sender = Pipe(duplex=False)
    for turn in (*turns, None):
        sender.send(turn)
    ranks, answers = Alone(), []
    return SegmentClock(ranks, turn_pipe, answers.append), ranks, answers


def make_steps(clock, ranks, batches_an_epoch, epochs):
    """A training loop without training: whether each step was recorded."""
    recorded = []
    for _ in clock.epochs(epochs):
        for _ in clock.batches(torch.arange(batches_an_epoch).split(1)):
            recorded.append(ranks.recorder.is_on)
            ranks.recorder.end_step()
            if not clock.end_step():
                return recorded
    raise AssertionError("it ended by itself")


def test_the_first_steps_of_a_turn_are_not_timed():
    clock, ranks, answers = clock_of(Turn(2, 3), Turn(0, 1), Turn(1, 1))
    assert make_steps(clock, ranks, 4, 1) == [False, False, True, True, True, True, False, True]
    assert answers[0] == []
    assert [len(seconds) for seconds in answers] == [0, 3, 1, 1]
    assert ranks.starts == 1


def test_where_the_time_of_warm_up_steps_goes_is_not_recorded():
    clock, ranks, answers = clock_of(Turn(0, 2, warmup=True), Turn(0, 3))
    assert make_steps(clock, ranks, 100, 1) == [False] * 2 + [True] * 3
    assert [len(seconds) for seconds in answers] == [0, 2, 3]


def test_warm_up_turns_say_that_they_are():
    arms = Arms(a=0.01, b=0.01)
    made(arms, warmup_steps=5)
    assert [turn.warmup for _, turn in arms.asked[:7]] == [True] * 6 + [False]


def test_partial_batches_are_left_out():
    clock, _, _ = clock_of()
    assert [len(batch) for batch in clock.batches(torch.arange(101).split(24))] == [24] * 4
    assert [len(batch) for batch in clock.batches(torch.arange(96).split(24))] == [24] * 4
    assert [len(batch) for batch in clock.batches(torch.arange(5).split(24))] == [5]


def test_without_a_turn_no_step_is_made():
    clock, ranks, answers = clock_of()
    assert not list(clock.epochs(3))
    assert (answers, ranks.starts) == ([[]], 0)


# Rounds.


class Arms:
    """Arms whose steps take exactly these seconds, and what was asked of them. One may end after so many steps."""

    def __init__(self, ends_after=None, **step_seconds):
        self.step_seconds, self.asked = step_seconds, []
        self._ends_after, self._made = ends_after, 0

    def run_turn(self, name, turn):
        self.asked.append((name, turn))
        self._made += turn.steps
        if self._ends_after is not None and self._made > self._ends_after:
            raise ScriptEnded(name)
        return [] if turn.traced else [self.step_seconds[name]] * turn.timed_steps


def made(arms, pace=PACE, rounds=8, warmup_steps=2, seed=0):
    """So many rounds, and what was asked of the arms in them."""
    found = Rounds(pace, list(arms.step_seconds), seed)
    found.warm_up(arms, warmup_steps)
    before = len(arms.asked)
    found.run_until(arms, lambda seconds: found.timed_rounds >= rounds)
    return found, arms.asked[before:]


def test_the_order_of_the_arms_alternates():
    _, asked = made(Arms(a=0.01, b=0.005, c=0.001), rounds=4)
    assert "".join(name for name, _ in asked) == "abccbaabccba"


def test_a_turn_is_as_long_for_every_arm_whatever_its_steps_take():
    found, _ = made(Arms(short=0.0002, long=0.002), rounds=400)
    for timed in found.timed.values():
        assert statistics.mean(sum(turn) for turn in timed.turns) == pytest.approx(PACE.turn_seconds, rel=0.05)


def test_turns_differ_in_length_so_that_they_keep_in_step_with_nothing():
    _, asked = made(Arms(a=0.0001, b=0.0001), rounds=200)
    steps = [turn.timed_steps * 0.0001 / PACE.turn_seconds for _, turn in asked]
    assert 1 - JITTER - 0.01 < min(steps) < 1 - 0.9 * JITTER
    assert 1 + 0.9 * JITTER < max(steps) < 1 + JITTER + 0.01
    assert len({turn.timed_steps for _, turn in asked}) > 50


def test_the_same_block_asks_for_the_same_turns_and_another_for_others():
    asked = [made(Arms(a=0.0001, b=0.0002), seed=seed)[1] for seed in (0, 0, 1)]
    assert asked[0] == asked[1] != asked[2]


def test_a_turn_begins_with_untimed_steps_unless_one_step_is_long():
    _, asked = made(Arms(short=0.001, long=0.1))
    assert {(name, turn.untimed_steps) for name, turn in asked} == {("short", 3), ("long", 0)}
    assert {turn.timed_steps for name, turn in asked if name == "long"} == {1}


def test_more_threads_than_cores_get_longer_turns(monkeypatch):
    monkeypatch.setattr(built_in_trainer, "PACE", PACE)
    monkeypatch.setattr(built_in_trainer, "OVERSUBSCRIBED_PACE", OVERSUBSCRIBED_PACE)
    config = tiny("workers=2")
    paces = []
    for cores in (1, 2):
        monkeypatch.setattr(built_in_trainer, "usable_cores", lambda cores=cores: cores)
        paces.append(BuiltInTrainer(config, LocalLauncher()).pace({"a": tiny(), "b": config}))
    assert paces == [OVERSUBSCRIBED_PACE, PACE]
    turns = [made(Arms(a=0.001, b=0.001), pace)[1] for pace in paces]
    longer, shorter = ([statistics.mean(getattr(turn, kind) for _, turn in asked) for kind in KINDS] for asked in turns)
    assert all(more > less for more, less in zip(longer, shorter, strict=True))


KINDS = ("untimed_steps", "timed_steps")


def test_warm_up_has_the_requested_steps_or_fewer_long_ones():
    arms = Arms(short=0.001, long=0.2, endless=2 * WARMUP_SECONDS)
    found, _ = made(arms, warmup_steps=10)
    warmed_up = collections.Counter(name for name, turn in arms.asked if turn.warmup for _ in range(turn.steps))
    assert warmed_up == {"short": 10, "long": 3, "endless": 2}
    assert {name: timed.min_step_seconds for name, timed in found.timed.items()} == arms.step_seconds


def test_the_step_time_comes_from_the_second_half_of_the_warm_up():
    """The first ones are slow, as caches and libraries are cold."""
    found = Rounds(PACE, ["a"], seed=0)
    answers = iter([[0.5], [0.1]])
    found.warm_up(type("Arms", (), {"run_turn": lambda self, name, turn: next(answers)})(), 2)
    assert (found.timed["a"].step_seconds, found.timed["a"].steps) == (0.1, 2)


def test_each_turn_knows_the_number_of_its_first_timed_step():
    """What a program does every n steps can be told from chance by it."""
    found, asked = made(Arms(a=0.001), rounds=5, warmup_steps=3)
    turns = [turn for _, turn in asked]
    before = [3, *itertools.accumulate((turn.steps for turn in turns), initial=3)][1:]
    assert found.timed["a"].first_steps == [at + turn.untimed_steps for at, turn in zip(before, turns, strict=False)]


def test_a_traced_round_does_not_count():
    arms = Arms(a=0.01, b=0.01)
    found, asked = made(arms, Pace(0.06, 0.01, min_untimed_steps=1, traced_every=4), rounds=9)
    traced = [turn.traced for name, turn in asked if name == "a"]
    assert traced == [False, True, False, False] * 3
    assert found.timed_rounds == 9
    for timed in found.timed.values():
        assert len(timed.turns) == len(timed.first_steps) == 9
        assert all(timed.turns)
    counting = "".join(name for name, turn in asked if not turn.traced)
    assert counting == "abba" * 4 + "ab"  # a traced round doesn't turn the order of the others


def test_the_shortest_block_has_a_traced_round_too():
    arms = Arms(a=0.01)
    found = Rounds(Pace(0.06, 0.01, min_untimed_steps=1, traced_every=4), ["a"], seed=0)
    found.warm_up(arms, 2)
    found.run_until(arms, lambda seconds: True)
    assert found.timed_rounds == MIN_ROUNDS
    assert any(turn.traced for _, turn in arms.asked)


def test_a_script_that_ends_keeps_its_rounds():
    arms = Arms(a=0.01, b=0.01, ends_after=100)
    found = Rounds(PACE, ["a", "b"], seed=0)
    found.warm_up(arms, 2)
    found.run_until(arms, lambda seconds: False)
    assert found.timed_rounds > MIN_ROUNDS
    assert {len(timed.turns) for timed in found.timed.values()} == {found.timed_rounds}


def test_a_script_that_ends_before_its_first_round_says_so():
    arms = Arms(a=0.01, b=0.01, ends_after=6)
    found = Rounds(PACE, ["a", "b"], seed=0)
    found.warm_up(arms, 2)
    with pytest.raises(ScriptEnded):
        found.run_until(arms, lambda seconds: False)


def test_a_block_has_at_least_the_minimum_of_rounds():
    found = Rounds(PACE, ["a"], seed=0)
    arms = Arms(a=0.01)
    found.warm_up(arms, 2)
    found.run_until(arms, lambda seconds: True)
    assert found.timed_rounds == MIN_ROUNDS


# Between turns.


def test_a_pool_that_spins_is_waited_for():
    spinning, seen = threading.Event(), []

    def spin():
        while not spinning.is_set():
            torch.rand(1000).sum()

    thread = threading.Thread(target=spin)
    thread.start()
    ender = threading.Timer(0.02, spinning.set)
    ender.start()
    _wait_until_idle()
    seen.append(spinning.is_set())
    thread.join()
    assert seen == [True]
