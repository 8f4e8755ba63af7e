"""Groups of processes: reports by rank, the first cause of a failure, and no process left behind."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import warnings
from multiprocessing import forkserver

import psutil
import pytest
from basics import TINY
from programs import Program

from dpexp.errors import PeerError, WorkerError
from dpexp.machine import signals
from dpexp.processes import launch
from dpexp.processes.world import WorldSpec


def report_rank(rank, word, notify):
    notify((rank, word))
    return rank, word


def warn(rank, notify):
    warnings.warn("rarely seen", stacklevel=1)


def forked_from_the_importer(rank, notify):
    from dpexp.processes import server_setup  # by the fork server, where the preload worked

    return os.getppid() == server_setup.server


def objects_out_of_collection(rank, notify):
    return gc.get_freeze_count()


def fail_on_rank_1(rank, notify):
    if rank == 1:
        raise ValueError("the cause\nin two lines")
    signal.pause()


def die_on_rank_1(rank, notify):
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()


def lose_rank_1(rank, notify):
    if rank == 0:
        raise PeerError("lost another rank")
    psutil.Process().parent().children()  # some time passes
    os.kill(os.getpid(), signal.SIGKILL)


def lose_a_rank_that_lives(rank, notify):
    if rank == 0:
        raise PeerError("lost another rank")


def leave_on_rank_1(rank, notify):
    if rank == 1:
        os._exit(3)
    signal.pause()


def wait_for_a_signal(rank, notify):
    notify(os.getpid())
    signal.pause()


def signal_parent(rank, number, notify):
    if rank == 1:
        os.kill(multiprocessing.parent_process().pid, number)
    signal.pause()


def workers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if "forkserver" in " ".join(child.cmdline())]


def test_reports_come_by_rank():
    assert launch.launch(WorldSpec(report_rank, [("a",), ("b",)])) == [(0, "a"), (1, "b")]


def test_several_worlds_live_together_and_any_of_their_ranks_may_notify():
    specs = [WorldSpec(report_rank, [(word,)] * 2) for word in ("a", "b")]
    with launch.running_worlds(specs) as worlds:
        assert [sorted(worlds.next_notice(world) for _ in range(2)) for world in (1, 0)] == [
            [(0, "b"), (1, "b")],
            [(0, "a"), (1, "a")],
        ]
        assert worlds.reports() == [[(0, "a"), (1, "a")], [(0, "b"), (1, "b")]]


def test_what_workers_warn_of_is_reported_once(caplog):
    for _ in range(2):
        launch.launch(WorldSpec(warn, [()] * 2))
    (told,) = [record.message for record in caplog.records if "rarely seen" in record.message]
    assert told.endswith("UserWarning: rarely seen")


def test_notices_arrive_while_processes_run():
    before = len(workers())
    with launch.running_worlds([WorldSpec(wait_for_a_signal, [()] * 2)]) as worlds:
        pids = [worlds.next_notice(0) for _ in range(2)]
        assert {process.pid for process in workers()} >= set(pids)
    assert len(workers()) == before


def test_a_failure_in_one_world_ends_all_and_names_the_world():
    before = len(workers())
    specs = [WorldSpec(wait_for_a_signal, [()] * 2), WorldSpec(die_on_rank_1, [()] * 2, "baseline")]
    with (
        pytest.raises(WorkerError, match=r"^baseline: rank 1 was killed by SIGKILL, while starting$"),
        launch.running_worlds(specs) as worlds,
    ):
        worlds.reports()
    assert len(workers()) == before


def test_an_exception_within_ends_all_processes():
    before = len(workers())
    with pytest.raises(KeyError), launch.running_worlds([WorldSpec(wait_for_a_signal, [()] * 3)]):
        raise KeyError
    assert len(workers()) == before


def test_workers_are_forked_with_everything_imported():
    assert launch.launch(WorldSpec(forked_from_the_importer, [()])) == [True]


@pytest.mark.parametrize(("strategies", "needed"), [("sync_dp", False), ("sync_dp,ddp", True)])
def test_a_command_has_imported_for_its_workers_what_one_of_its_jobs_needs(dpexp, monkeypatch, strategies, needed):
    asked = []
    monkeypatch.setattr(forkserver, "set_forkserver_preload", asked.append)
    few_figures = ["measurement.baseline=none"]
    assert dpexp("-m", *TINY, *few_figures, f"strategy={strategies}", "workers=1").status == 0
    assert ("torch._dynamo" in asked[0]) is needed


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (fail_on_rank_1, "rank 1 failed while starting: ValueError: the cause in two lines"),
        (die_on_rank_1, "rank 1 was killed by SIGKILL"),
        (leave_on_rank_1, "rank 1 exited with status 3"),
    ],
)
def test_the_first_failure_ends_the_group_and_is_named(target, message):
    launch.launch(WorldSpec(report_rank, [("the server",)]))
    before = len(workers())
    with pytest.raises(WorkerError, match=message):
        launch.launch(WorldSpec(target, [()] * 3))
    assert len(workers()) == before


def test_a_failures_traceback_is_kept():
    with pytest.raises(WorkerError) as caught:
        launch.launch(WorldSpec(fail_on_rank_1, [()] * 2))
    assert "in fail_on_rank_1" in caught.value.details


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_parent_ends_the_group_while_it_waits_or_works(number):
    before = len(workers())
    with (
        pytest.raises(signals.Interrupted),
        signals.raise_interrupts(),
        launch.running_worlds([WorldSpec(signal_parent, [(number,)] * 3)]) as worlds,
    ):
        worlds.reports()
    assert len(workers()) == before
    finished = []
    with (
        pytest.raises(signals.Interrupted),
        signals.raise_interrupts(),
        launch.running_worlds([WorldSpec(wait_for_a_signal, [()] * 3)]) as worlds,
    ):
        finished.append(signal.raise_signal(number))
    assert finished
    assert len(workers()) == before


def test_ctrl_c_in_a_notebook_is_a_keyboard_interrupt():
    before = len(workers())
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            launch.launch(WorldSpec(signal_parent, [(signal.SIGINT,)] * 3))
    finally:
        signal.signal(signal.SIGINT, handler)
    assert len(workers()) == before


def test_workers_die_with_the_main_process(tmp_path):
    script = (
        "import sys; sys.path[:0] = ['tests/processes', 'tests/helpers']\n"
        "import test_launch\n"
        "from dpexp.processes import launch\n"
        "from dpexp.processes.world import WorldSpec\n"
        "with launch.running_worlds([WorldSpec(test_launch.wait_for_a_signal, [()] * 2)]) as worlds:\n"
        "    print(worlds.next_notice(0), flush=True)\n"
        "    worlds.reports()\n"
    )
    main = Program([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert main.stdout is not None
    worker = psutil.Process(int(main.stdout.readline()))
    main.kill()
    main.wait()
    main.stdout.close()
    gone, _ = psutil.wait_procs([worker], timeout=10)
    assert gone


def test_what_was_imported_stays_shared_when_a_worker_collects_garbage():
    assert launch.launch(WorldSpec(objects_out_of_collection, [()]))[0] > 100_000


def test_who_only_lost_a_peer_does_not_hide_the_peers_own_death():
    with pytest.raises(WorkerError, match=r"^rank 1 was killed by SIGKILL, while starting$"):
        launch.launch(WorldSpec(lose_rank_1, [(), ()]))


def test_a_loss_without_a_known_cause_is_reported():
    with pytest.raises(PeerError, match=r"^rank 0 failed while starting: lost another rank$"):
        launch.launch(WorldSpec(lose_a_rank_that_lives, [(), ()]))
