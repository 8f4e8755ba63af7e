"""Calm steps, recorded on a real machine and simulated: bursts of a neighbour don't move the speedup."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import composed, tiny
from results_helpers import training

from dpexp.analysis.calm_steps import binned, disturbed_share, slowest_of, undisturbed_seconds
from dpexp.analysis.speedup import is_calm, paired_speedup
from dpexp.data.dataset import load
from dpexp.launchers.local import LocalLauncher
from dpexp.machine.environment import usable_cores
from dpexp.measurement import loop_trainer
from dpexp.models.initial_state import initial_state
from dpexp.training.worker import Work

QUIET_SPEEDUP = 1.736  # of the same training by turns, on the same machine while it was quiet; see traces/README.md
CONFIG = composed("workers=2", "measurement.drift=0")
FIXED = composed("workers=2", "measurement.drift=0", "measurement.precision=null")
TRIALS, BLOCKS, STEPS = 300, 8, 300


UPDATES = {"baseline": 626, "candidate": 314}  # of the recorded trainings; of their steps, every second one is kept


def one_worker(compute, seconds, updates, partial=(0, 0.0)):
    """Steps as of one worker that spends on the exchange what it does not compute."""
    nothing = np.zeros(len(compute))
    ranks = np.stack([nothing, compute, nothing, np.subtract(seconds, compute), nothing], axis=1)
    return binned(ranks[None], updates, *partial)


def trained(compute, seconds, updates=None):
    """A training of these steps."""
    times = one_worker(np.asarray(compute), np.asarray(seconds), updates or len(seconds))
    return replace(training(float(np.mean(seconds) * times.updates)), steps=times)


@functools.cache
def commands(trace="neighbour"):
    """Of each recorded command the pairs of trainings; the candidate has half as many steps."""
    found: dict[int, list] = {}
    with np.load(Path(__file__).parent / "traces" / f"{trace}.npz") as file:
        for name in file.files:
            command, _, side = name.split("_")
            found.setdefault(int(command), []).append((side, trained(*file[name] * 1e-6, UPDATES[side])))
    return [
        list(zip(*[[one for at, one in sides if at == side] for side in ("baseline", "candidate")], strict=True))
        for sides in found.values()
    ]


def test_beside_a_neighbour_commands_that_found_calm_steps_agree_with_the_quiet_machine():
    estimates = [paired_speedup(CONFIG, pairs) for pairs in commands() if is_calm(pairs)]
    logs = np.log([estimate.value for estimate in estimates])
    assert len(estimates) >= 7
    assert logs.std(ddof=1) < 0.015
    assert math.exp(logs.mean()) == pytest.approx(QUIET_SPEEDUP, rel=0.02)


def test_beside_a_program_on_a_workers_core_the_steps_that_it_did_not_delay_agree_with_the_quiet_machine():
    """It delays the worker between computations, which themselves take as long as ever."""
    pairs = commands("stressed_steps")
    estimates = [paired_speedup(CONFIG, one) for one in pairs]
    assert all(map(is_calm, pairs))
    assert [estimate.value for estimate in estimates] == pytest.approx([QUIET_SPEEDUP] * 8, rel=0.02)
    assert max(paired_speedup(CONFIG, one, overall=True).value for one in pairs) < 1.2


def test_with_all_time_counted_the_same_commands_differ_by_tens_of_percents():
    logs = np.log([paired_speedup(CONFIG, pairs, overall=True).value for pairs in commands() if is_calm(pairs)])
    assert logs.std(ddof=1) > 0.08


def test_where_no_steps_were_calm_the_interval_reaches_from_what_was_seen_to_the_ideal():
    disturbed = [pairs for pairs in commands() if not is_calm(pairs)]
    assert disturbed
    for pairs in disturbed:
        estimate = paired_speedup(CONFIG, pairs)
        assert estimate.low < estimate.value < QUIET_SPEEDUP < estimate.high == 2


def test_one_process_that_plays_all_workers_is_ideally_as_fast_as_one_that_trains():
    emulated = composed("strategy=emulated", "workers=2")
    disturbed = [pairs for pairs in commands() if not is_calm(pairs)]
    assert disturbed
    for pairs in disturbed:
        assert paired_speedup(emulated, pairs).high < 2


def steps(generator, workers, process, share):
    """Steps of a training: each worker computes, the slowest decides; bursts on a core slow it by half."""
    hit = generator.random((workers, STEPS // 10)) < share  # for ten steps at once
    compute = generator.normal(1, 0.02, (workers, STEPS)) * (1 + 0.5 * hit.repeat(10, 1)) * process
    return trained(compute.max(0), compute.max(0))


MACHINES = {"quiet": 0.0, "a burst now and then": 0.1, "a neighbour on each core for a third of the time": 0.33}


@pytest.mark.parametrize("machine", MACHINES)
def test_the_interval_covers_the_speedup_of_undisturbed_steps(machine):
    generator = np.random.default_rng(5)
    # The slower of two workers takes a bit longer than one: by this, for two normal times that deviate by 2 %.
    truth = 1.0 / (1.0 + 0.02 / math.sqrt(math.pi))
    covered = 0
    for _ in range(TRIALS):
        processes = generator.normal(1, 0.01, (2, BLOCKS))
        pairs = [
            (steps(generator, 1, a, MACHINES[machine]), steps(generator, 2, b, MACHINES[machine]))
            for a, b in processes.T
        ]
        found = paired_speedup(FIXED, pairs)
        covered += found.low <= truth <= found.high
    assert 0.92 <= covered / TRIALS <= 0.985


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5])
def test_the_interval_covers_the_speedup_where_a_program_delays_this_share_of_the_trainings(share):
    """Of the candidates only: it hits two workers, and a single process moves away."""
    generator = np.random.default_rng(9)
    covered, settled = 0, 0
    for _ in range(TRIALS):
        pairs = []
        for a, b, c in generator.normal(1, 0.01, (BLOCKS, 3)):
            delay = generator.uniform(1.3, 6) if generator.random() < share else 1.0
            others = 0.2 * (1 + 3 * (c - 1)) * delay  # beside computation; naturally, trainings differ by 3 % in it
            sequential, workers = np.full(STEPS, a), np.full(STEPS, b)
            pairs.append((trained(sequential, sequential + 0.1), trained(workers, workers + others)))
        found = paired_speedup(FIXED, pairs)
        settled += is_calm(pairs)
        covered += found.low <= 1.1 / 1.2 <= found.high
    assert settled >= 0.95 * TRIALS
    assert 0.92 <= covered / TRIALS <= 0.985


@pytest.mark.parametrize("shape", [1.0, 4.0, 50.0])
def test_exchanges_that_differ_by_nature_count_in_full(shape):
    """From exponential times to nearly equal ones; nobody disturbs the machine."""
    generator = np.random.default_rng(10)

    def exchanging():
        compute = generator.normal(1, 0.01, STEPS)
        return trained(compute, compute + 0.2 + generator.gamma(shape, 0.2 / shape, STEPS))

    sequential = np.ones(STEPS)
    found = paired_speedup(FIXED, [(trained(sequential, sequential + 0.1), exchanging()) for _ in range(BLOCKS)])
    assert found.value == pytest.approx(1.1 / 1.4, rel=0.02)


def test_a_model_whose_steps_differ_by_nature_is_compared_by_turns():
    generator = np.random.default_rng(7)

    def varied():
        seconds = generator.uniform(1, 2, STEPS)  # as for sentences of different lengths
        return trained(seconds, seconds)

    pairs = [(varied(), varied()) for _ in range(BLOCKS)]
    found = paired_speedup(FIXED, pairs)
    whole = paired_speedup(FIXED, pairs, overall=True)
    assert found == whole


def test_on_a_machine_that_is_hardly_ever_calm_the_model_is_not_blamed():
    generator = np.random.default_rng(8)
    pairs = [
        (steps(generator, 1, 1.0, share), steps(generator, 1, 0.94, share)) for share in (0.62, 0.9, 0.95, 0.97, 0.99)
    ]
    assert not is_calm(pairs)
    found = paired_speedup(FIXED, pairs)
    assert found.low <= 1 <= found.high


def test_on_such_a_machine_the_process_of_several_threads_may_be_as_much_faster_as_it_has_threads():
    generator = np.random.default_rng(8)

    def several_threads(share):
        found = steps(generator, 1, 0.5, share)
        return replace(found, workers=[replace(worker, threads=2) for worker in found.workers])

    pairs = [(several_threads(share), steps(generator, 1, 1.0, share)) for share in (0.62, 0.9, 0.95, 0.97, 0.99)]
    found = paired_speedup(composed("workers=1", "measurement.precision=null"), pairs)
    assert found.low <= 0.5


def test_the_slowest_of_several_is_a_multiple_of_the_mean_calm_step():
    half_slow = one_worker(np.r_[np.ones(50), np.full(50, 1.5)], np.r_[np.ones(50), np.full(50, 1.5)], 100)
    assert slowest_of(1, [half_slow])[0] == pytest.approx(1)
    calm, every = slowest_of(2, [half_slow])
    assert calm == pytest.approx(1)
    assert every == pytest.approx(0.25 * 1 + 0.75 * 1.5, rel=0.01)  # bins are a percent wide


def test_the_share_of_disturbed_steps_is_that_of_the_bursts():
    generator = np.random.default_rng(6)
    trainings = [steps(generator, 1, 1.0, 0.3).steps for _ in range(20)]
    assert disturbed_share(trainings) == pytest.approx(0.3, abs=0.03)


def test_equal_steps_are_all_calm():
    assert undisturbed_seconds([one_worker(np.full(9, 0.5), np.full(9, 0.75), 90)]) == [pytest.approx(90 * 0.75)]


def test_a_training_with_hardly_a_calm_step_does_not_count():
    calm, slow = np.ones(100), np.r_[np.ones(5), np.full(95, 1.5)]
    found = undisturbed_seconds([one_worker(one, one, 100) for one in (calm, slow)])
    assert found[0] == pytest.approx(100)
    assert math.isnan(found[1])


def test_a_partial_step_that_a_neighbour_hit_counts_as_the_shortest():
    halves = np.full(8, 0.5)
    trainings = [one_worker(halves, halves, 8, partial=(2, seconds)) for seconds in (5.0, 0.1)]
    assert undisturbed_seconds(trainings) == pytest.approx([4.2, 4.2], rel=0.01)  # bins are a percent wide


def test_steps_of_partial_batches_count_as_what_they_take():
    halves = np.full(8, 0.5)
    steps = one_worker(halves, halves, 8, partial=(2, 0.1))
    assert undisturbed_seconds([steps]) == [pytest.approx(8 * 0.5 + 2 * 0.1)]


def test_a_step_that_was_interrupted_outside_its_computation_is_not_calm():
    usual = [0.0, 0.5, 0.05, 0.1, 0.05]  # data, compute, wait, communicate, update
    interrupted = [0.0, 0.5, 0.05, 3.1, 0.05]
    ranks = np.array([[usual] * 9 + [interrupted]] * 2)
    steps = binned(ranks, 10, 0, 0.0)
    assert disturbed_share([steps]) == pytest.approx(0.1)
    assert undisturbed_seconds([steps]) == [pytest.approx(10 * 0.7)]


def test_a_step_that_was_interrupted_while_it_fetched_data_is_not_calm():
    ranks = np.array([[[0.05, 0.5, 0.05, 0.1, 0.05]] * 9 + [[3.0, 0.5, 0.05, 0.1, 0.05]]])
    assert disturbed_share([binned(ranks, 10, 0, 0.0)]) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("settings", "known"),
    [
        (["workers=2"], True),
        (["workers=2", "strategy=emulated"], True),
        (["workers=2", "strategy=ddp"], False),  # its waiting counts as computation
        (["workers=2", "measurement.phases=false"], False),
        ([f"workers={usable_cores() + 1}"], True),  # of which two take turns on a core
        (["workers=2", f"threads_per_worker={usable_cores() + 1}"], False),  # which share cores
    ],
)
def test_steps_are_known_where_computing_shows_whether_a_core_was_slow(settings, known):
    config = tiny(*settings, "batch.size=24", "batch.scope=per_worker", "data.size=501")
    dataset = load(config)
    work = Work(config, dataset, initial_state(config, dataset), "torch", False, None)
    steps = loop_trainer.recorded(work, LocalLauncher().run(work)).steps
    assert (steps is not None) is known
    if steps is not None:
        assert sum(steps.counts) == steps.updates == config.updates - config.epochs  # the last batch of each is partial
        assert steps.partial_updates == config.epochs
