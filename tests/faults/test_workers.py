"""Whatever happens to a worker: the job fails with the cause, nothing is left, and the next job runs."""

from __future__ import annotations

import gc
import itertools
import signal
import time

import fault_helpers
import pytest
from fault_helpers import IN_ONE_PIECE, Faulty, children, descriptors, places, run_job, segment_places
from worker_actions import (
    Place,
    ask_for_too_much,
    crash,
    fail,
    hang,
    kill,
    kill_server,
    leave,
    make_slow_progress,
    spin,
    stop,
)

from dpexp.errors import WorkerError
from dpexp.phases import COMMUNICATE, COMPUTE, WAIT
from dpexp.processes import launch, watchdog
from dpexp.processes.heartbeat import EVALUATING, TRAINING, WAITING
from dpexp.processes.world import RemoteRanks, WorldSpec
from dpexp.results import storage
from dpexp.train.strategies import core_sharing
from testbed.endurance import shared_names

KINDS = {"in turns": True, "in one piece": False}
MOMENTS = [
    pytest.param(strategy, rank, in_turns, place, id=f"{strategy}-rank {rank}-{kind}-{place}-{place.visit}")
    for first, strategy in enumerate(("sync_dp", "ddp"))
    for kind, in_turns in KINDS.items()
    for number, place in enumerate(segment_places(seed=first) if in_turns else places(seed=first, rank=0))
    for rank in [0 if place.stage == EVALUATING else (first + number) % 3]
    if strategy == "sync_dp" or place.phase not in (WAIT, COMMUNICATE)  # which ddp can't tell from others
]


def failure(folder, place, action, victim, *overrides, in_turns=True):
    """The error of a job to whose worker something happens; it is what the result says, too.

    It happens in a segment, or else in the whole training that is made afterwards.
    """
    settings = fault_helpers.in_turns(place) if in_turns else IN_ONE_PIECE
    with pytest.raises(WorkerError) as caught:
        run_job(folder, *overrides, *settings, launcher=Faulty(place, action, victim, in_turns))
    recorded = storage.read(folder / storage.FILE_NAME)
    assert (recorded.status, recorded.error, recorded.details) == (
        "failed",
        str(caught.value),
        caught.value.details or None,
    )
    assert len(recorded.blocks) == (0 if in_turns else 1)
    return caught.value


@pytest.mark.parametrize(("strategy", "rank", "in_turns", "place"), MOMENTS)
def test_a_killed_worker_is_named_with_signal_step_and_phase(tmp_path, monkeypatch, strategy, rank, in_turns, place):
    monkeypatch.setattr(core_sharing, "usable_cores", lambda: 3)  # each rank updates its share
    error = failure(tmp_path, place, kill, rank, "workers=3", f"strategy={strategy}", in_turns=in_turns)
    assert str(error) == f"rank {rank} was killed by SIGKILL, {place}"


@pytest.mark.parametrize(("rank", "in_turns"), [(0, True), (1, False)], ids=KINDS)
@pytest.mark.parametrize("phase", [WAIT, COMPUTE, COMMUNICATE])
def test_a_worker_killed_while_others_wait_for_its_core_is_named(tmp_path, monkeypatch, rank, phase, in_turns):
    monkeypatch.setattr(core_sharing, "usable_cores", lambda: 1)
    place = Place(TRAINING, phase, 4)
    error = failure(tmp_path, place, kill, rank, "workers=2", in_turns=in_turns)
    assert str(error) == f"rank {rank} was killed by SIGKILL, {place}"


def test_nothing_is_left_of_failed_jobs_and_the_next_one_runs(tmp_path):
    run_job(tmp_path, "workers=2", *IN_ONE_PIECE)  # what is made once is there
    gc.collect()
    before = descriptors(), shared_names(), children()
    for in_turns, every in ((True, segment_places(seed=7)), (False, places(seed=7))):
        for number, place in enumerate([*every][not in_turns :: 2]):
            failure(tmp_path, place, kill, number % 2, "workers=2", in_turns=in_turns)
    gc.collect()
    assert (descriptors(), shared_names(), children()) == (before[0], before[1], set())
    run_job(tmp_path, "workers=2")
    assert storage.read(tmp_path / storage.FILE_NAME).status == "ok"


@pytest.mark.parametrize(("strategy", "kind"), [("sync_dp", "in turns"), ("ddp", "in one piece")])
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_what_a_worker_raises_is_the_cause_whatever_others_say(tmp_path, rank, strategy, kind):
    place = Place(TRAINING, COMPUTE, 3)
    error = failure(tmp_path, place, fail, rank, "workers=3", f"strategy={strategy}", in_turns=KINDS[kind])
    assert str(error) == f"rank {rank} failed {place}: ValueError: no such luck in two lines"
    assert "in fail\n" in error.details
    assert (tmp_path / "error.log").read_text() == error.details


def test_memory_that_torch_cannot_have_is_the_cause(tmp_path):
    error = failure(tmp_path, Place(TRAINING, COMPUTE, 2), ask_for_too_much, 1, "workers=2")
    assert "rank 1 failed while training" in str(error)
    assert "allocate" in str(error)
    assert "in ask_for_too_much" in error.details


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("action", [stop, spin], ids=lambda action: action.__name__)
def test_a_hang_ends_with_the_stacks_of_all_workers(tmp_path, action, kind):
    in_turns, rank = KINDS[kind], int((action is stop) == KINDS[kind])
    place = Place(TRAINING, COMPUTE, 4)
    error = failure(tmp_path, place, action, rank, "workers=2", "launch.timeout_seconds=1", in_turns=in_turns)
    stopped = ", stopped by a signal" if action is stop else ""
    assert f"rank {rank} {place}{stopped}" in str(error)
    assert f"rank {1 - rank} while training, in step 4, phase wait" in str(error)
    assert ("baseline: rank 0 while waiting for its turn" in str(error)) is in_turns
    assert "launch.timeout_seconds" in str(error)
    victims, other = f"in {action.__name__}\n", "barrier.py"
    assert victims in error.details, error.details
    assert other in error.details
    assert not children()


@pytest.mark.parametrize("action", [stop, spin], ids=lambda action: action.__name__)
def test_a_hang_between_turns_is_seen_when_its_next_turn_comes(tmp_path, action):
    place = Place(WAITING, visit=3)
    error = failure(tmp_path, place, action, 1, "workers=2", "launch.timeout_seconds=1")
    stopped = ", stopped by a signal" if action is stop else ""
    assert f"rank 1 {place}{stopped}" in str(error)
    assert f"in {action.__name__}\n" in error.details
    assert not children()


def test_a_slow_worker_is_no_hang():
    launch.launch(WorldSpec(make_slow_progress, [(1.5,)] * 2), timeout_seconds=0.5)


def test_progress_on_another_machine_prevents_a_hang_error():
    """That one makes progress for a while, then no more; the worker here never does."""
    exchanged = []

    def sync_progress(local):
        exchanged.append(local)
        return min(len(exchanged), 10)

    remote = RemoteRanks(3, sync_progress, lambda: [])
    with pytest.raises(WorkerError, match=r"no worker made progress for 0\.4 s: rank 3 while starting"):
        launch.launch(WorldSpec(hang, [()], remote=remote), timeout_seconds=0.4)
    assert len(exchanged) > 10


def test_time_in_which_this_process_was_stopped_itself_is_no_hang(monkeypatch):
    looks, hours = itertools.count(), itertools.count(step=3600)
    monkeypatch.setattr(time, "monotonic", lambda: next(hours))
    assert watchdog.wait_until(lambda: next(looks) == 10, seconds=100.0)


def test_a_crash_in_native_code_shows_where_python_was(tmp_path):
    error = failure(tmp_path, Place(TRAINING, WAIT, 2), crash, 1, "workers=2")
    assert str(error).startswith(f"rank 1 was killed by {signal.SIGSEGV.name}, while training")
    assert "in crash\n" in error.details


def test_a_worker_that_exits_without_a_report_is_named(tmp_path):
    error = failure(tmp_path, Place(TRAINING, COMPUTE, 2), leave, 1, "workers=2")
    assert str(error).startswith("rank 1 exited with status 7 without a report, while training")


def test_blocks_finished_before_a_failure_are_kept(tmp_path):
    with pytest.raises(WorkerError):
        run_job(
            tmp_path,
            "workers=2",
            "measurement.repeats=3",
            launcher=Faulty(Place(TRAINING, COMPUTE, 2), kill, 1, number=2),
        )
    assert len(storage.read(tmp_path / storage.FILE_NAME).blocks) == 2


def test_blocks_and_trainings_finished_before_a_failure_are_kept(tmp_path):
    settings = ["workers=2", "measurement.repeats=2", "target_accuracy=0.5"]
    with pytest.raises(WorkerError):
        run_job(tmp_path, *settings, launcher=Faulty(Place(TRAINING, COMPUTE, 2), kill, 1, in_turns=False, number=1))
    found = storage.read(tmp_path / storage.FILE_NAME)
    assert len(found.blocks) == 2
    assert {name: len(trainings) for name, trainings in found.trainings.items()} == {"candidate": 1, "baseline": 1}


def test_when_the_fork_server_dies_in_the_middle_the_job_fails_and_the_next_one_runs(tmp_path):
    error = failure(tmp_path, Place(TRAINING, COMPUTE, 2), kill_server, 1, "workers=2")
    assert "exited with status 255 without a report, while " in str(error)
    assert not children()
    assert run_job(tmp_path, "workers=2")
