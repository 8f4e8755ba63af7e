"""Under torchrun, on this machine as if it were two: one result, one output folder, one voice."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import torch
from basics import PYTHONPATH, TINY, Outcome, free_port, tiny, wait_until
from programs import NESTED, Program
from training_helpers import assert_same, trained_state

from dpexp.config.compose import compose_config
from dpexp.errors import ConfigError, PeerError, WorkerError
from dpexp.launchers import torchrun_channel, torchrun_tasks
from dpexp.launchers.torchrun_environment import TorchrunEnvironment
from dpexp.machine import signals

CONTRACT = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
MODEL = ["model=custom", "model.builder=user_models:mortal", "checkpoint=true"]
OTHERS = [override for override in TINY if not override.startswith("model.")]
SETTINGS = [*OTHERS, *MODEL, "measurement.max_seconds=0.5"]


def together(commands: list[list[str]], folders: list[Path], variables: list[dict[str, str]]) -> list[tuple[int, str]]:
    """Run the commands at once, each in its own folder; their exit status and standard error."""
    running = [
        Program(command, cwd=folder, env={**os.environ, **own, "PYTHONPATH": PYTHONPATH}, stderr=subprocess.PIPE)
        for command, folder, own in zip(commands, folders, variables, strict=True)
    ]
    outcomes = [process.communicate(timeout=120)[1].decode() for process in running]
    return list(zip([process.returncode for process in running], outcomes, strict=True))


def changed(folder: Path, variables: list[dict[str, str]], arguments: list[list[str]], *changes: str) -> list[Outcome]:
    """How ranks with these variables and arguments end, each with a change of its code."""
    local = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(len(variables))}
    code = "import os, sys; from dpexp.cli import app; from dpexp.launchers import torchrun_channel, torchrun_tasks; "
    both = zip(arguments, changes or [""] * len(arguments), strict=True)
    commands = [[sys.executable, "-c", f"{code}{change}\nsys.exit(app.main())", *words] for words, change in both]
    outcomes = together(commands, [folder] * len(commands), [{**local, **own} for own in variables])
    return [Outcome(status, "", errors) for status, errors in outcomes]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Two agents with a rank each; rank 1 dies in the first job. Their folders and outcomes."""
    folders = [tmp_path_factory.mktemp(name) for name in ("first", "second")]
    torchrun = "-m torch.distributed.run --nnodes=2 --nproc-per-node=1 --master-addr=127.0.0.1"
    shared = [sys.executable, *torchrun.split(), f"--master-port={free_port()}"]
    jobs = ["-m", "strategy=ddp", "workers=2", *SETTINGS, "+model.arguments.victim=1,-1", "hydra.sweep.dir=out"]
    agents = [[*shared, f"--node-rank={node}", "-m", "dpexp", *jobs] for node in (0, 1)]
    return folders, together(agents, folders, [{}, {}])


def results(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("out/*/result.json"))]


@pytest.mark.slow
def test_a_rank_killed_on_the_other_machine_fails_the_job_by_name_and_the_next_job_runs(sweep):
    (first, _), outcomes = sweep
    failed, good = results(first)
    assert failed["status"] == "failed"
    assert re.fullmatch(
        r"rank 1 was killed by SIGKILL(, probably out of memory .+)?, while .+, in step \d+, phase compute",
        failed["error"],
    )
    candidate = good["blocks"][0]["arms"]["candidate"]
    assert (good["status"], len(candidate["processes"])) == ("ok", 2)
    assert all(status != 0 for status, _ in outcomes)


@pytest.mark.slow
def test_ranks_on_two_machines_end_at_the_sequential_parameters(sweep, tmp_path):
    (first, _), _ = sweep
    overrides = [*MODEL, "+model.arguments.victim=-1"]
    expected = trained_state(tiny("strategy=sequential", *overrides), tmp_path)
    assert_same(torch.load(first / "out" / "1" / "model.pt", weights_only=True), expected, 1e-12)


@pytest.mark.slow
def test_rank_zero_alone_writes(sweep):
    (first, second), _ = sweep
    assert (first / "out" / "results.csv").exists()
    assert not list(second.iterdir())


@pytest.mark.slow
def test_each_machine_tells_an_error_once(sweep):
    _, outcomes = sweep
    assert [error.count("was killed by SIGKILL") for _, error in outcomes] == [1, 1]


@pytest.mark.slow
def test_the_contract_of_variables_is_enough_without_torchrun(tmp_path):
    port = str(free_port())
    command = [sys.executable, "-m", "dpexp", "strategy=ddp", "workers=2", *SETTINGS, "+model.arguments.victim=-1"]
    folders = [tmp_path / "0", tmp_path / "1"]
    for folder in folders:
        folder.mkdir()
    own = [{**CONTRACT, "RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": "0"} for rank in ("0", "1")]
    local = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    outcomes = together([command] * 2, folders, [{**variables, **local} for variables in own])
    assert [status for status, _ in outcomes] == [0, 0], outcomes
    assert len(list(folders[0].rglob("result.json"))) == 1
    assert not list(folders[1].iterdir())


TRAINING = ["strategy=ddp", "workers=2", *SETTINGS, "+model.arguments.victim=-1"]
COMMAND = repr(" ".join(TRAINING))
PARENT = (
    "import pathlib, subprocess, sys; process = subprocess.Popen(sys.argv[1:]); "
    "pathlib.Path('process').write_text(str(process.pid)); process.wait()"
)
KILL = "kill = lambda *_: os.kill(os.getpid(), 9); "


@pytest.mark.slow
def test_when_rank_zero_is_killed_with_its_store_the_other_says_so(tmp_path):
    own = [{"RANK": rank, "LOCAL_RANK": "0"} for rank in "01"]
    die = f"{KILL}torchrun_tasks.TorchrunController._answers = kill"
    killed, other = changed(tmp_path, own, [TRAINING] * 2, die, "")
    assert (killed.status, other.status) == (-signal.SIGKILL, 1)
    assert "rank 0 exited before the other ranks" in other.err
    assert "Traceback" not in other.err


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells a process that its parent has ended")
@pytest.mark.parametrize("in_training", [False, True])
def test_when_torchrun_is_killed_its_rank_ends_and_all_say_so(tmp_path, in_training):
    """A small program stands for torchrun, whose own death leaves its processes to nobody in the same way."""
    command = [sys.executable, "-m", "dpexp", "strategy=ddp", "workers=2", *TINY, "measurement.max_seconds=600"]
    local = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    running = []
    with contextlib.ExitStack() as cleanup:
        for rank, own in (("0", {}), ("1", {"TORCHELASTIC_RUN_ID": "none", NESTED: "1"})):
            variables = {**os.environ, **local, "LOCAL_WORLD_SIZE": "1", "RANK": rank, **own}
            errors = cleanup.enter_context((tmp_path / f"{rank}.err").open("wb"))
            started = [*([sys.executable, "-c", PARENT] if own else []), *command, "hydra.run.dir=out"]
            running.append(Program(started, cwd=tmp_path, env=variables, stderr=errors))
            cleanup.callback(running[-1].kill)
        assert wait_until((tmp_path / "out" / "result.json").exists)
        orphan = psutil.Process(int((tmp_path / "process").read_text()))
        if in_training:
            assert wait_until(lambda: any(child.children() for child in orphan.children()))  # the fork server's workers
        running[1].kill()
        assert running[0].wait(timeout=60) == 1
        assert wait_until(lambda: not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE)
    for rank in ("0", "1"):
        assert "rank 1 was ended by SIGTERM" in (tmp_path / f"{rank}.err").read_text()


@pytest.mark.slow
def test_shared_memory_in_turns_is_refused(tmp_path):
    own = [{"RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    asked = ["strategy=ddp", "workers=2", "measurement.shared_memory=always", *TINY]
    outcomes = changed(tmp_path, own, [asked] * 2)
    assert [outcome.status for outcome in outcomes] == [2, 2]
    assert "measurement.shared_memory=always is not supported under torchrun; measure two jobs" in outcomes[0].err


@pytest.mark.slow
def test_ranks_that_were_given_different_settings_are_refused(tmp_path):
    own = [{"RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    given = [["strategy=ddp", "workers=2", *TINY, f"seed={seed}"] for seed in (1, 2)]
    first, second = changed(tmp_path, own, given)
    rank_0, rank_1 = map(" ".join, given)
    message = (
        f"dpexp: rank 1 was started with WORLD_SIZE=2 and {rank_1!r}, rank 0 was started with WORLD_SIZE=2 and "
        f"{rank_0!r}; start all ranks with the same arguments (torchrun: also the same --nnodes and "
        "--nproc-per-node on each host)\n"
    )
    assert (first.status, first.err) == (2, message)
    assert (second.status, second.err) == (2, "")  # one voice a machine


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world_sizes", "told"),
    [
        ("32", f"rank 1 was started with WORLD_SIZE=2 and {COMMAND}, rank 0 was started with WORLD_SIZE=3 and"),
        ("33", "rank 2 has not responded for 2 s"),
    ],
    ids=["one expects fewer", "one is missing"],
)
def test_a_wrong_number_of_hosts_is_reported_on_each(tmp_path, world_sizes, told):
    own = [{"RANK": rank, "LOCAL_RANK": "0", "WORLD_SIZE": size} for rank, size in zip("01", world_sizes, strict=True)]
    hurry = "torchrun_channel.SILENCE_SECONDS = 2.0"
    outcomes = changed(tmp_path, own, [TRAINING] * 2, hurry, hurry)
    assert all(outcome.status in (1, 2) for outcome in outcomes)
    for outcome in outcomes:
        assert told in outcome.err
        assert "Traceback" not in outcome.err


def ranks(world_size: int) -> list[TorchrunEnvironment]:
    """Their environments, each as on a host of its own."""
    local = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world_size)}
    variables = [{**local, "RANK": str(rank), "LOCAL_RANK": "0"} for rank in range(world_size)]
    return [TorchrunEnvironment.read(own) for own in variables]


def test_what_an_agent_answers_is_the_cause_on_all_ranks(monkeypatch):
    """Rank 2 has failed, and all others have lost it."""
    first, *others = ranks(3)
    controller = torchrun_tasks.TorchrunController(first, [])

    def fail(agent):
        if agent._environment.rank == 2:
            raise WorkerError("rank 2 failed", "its traceback")
        raise PeerError("rank 1 has lost another rank")

    monkeypatch.setattr(torchrun_tasks.TorchrunAgent, "_train", fail)
    said = {1: [], 2: []}
    with ThreadPoolExecutor(2) as pool:
        agents = [torchrun_tasks.TorchrunAgent(one, []) for one in others]
        served = [pool.submit(agent.serve, said[one.rank].append) for agent, one in zip(agents, others, strict=True)]
        controller.channel.wait_until(controller.channel.all_joined)
        with pytest.raises(WorkerError, match=r"^rank 2 failed$") as failure, controller._task("train"):
            raise PeerError("rank 0 has lost another rank")
        assert failure.value.details == "its traceback"
        controller.end(7, "rank 2 failed (see error.log)")
        assert [one.result() for one in served] == [7, 7]
    assert said == {1: ["rank 2 failed"], 2: ["rank 2 failed"]}  # once on each


def test_a_silent_rank_is_reported(monkeypatch):
    """Its process is stopped, or stuck. The last round of its channel stands for that."""
    monkeypatch.setattr(torchrun_channel, "SILENCE_SECONDS", 0.5)
    for silent, other in ((0, 1), (1, 0)):
        channels = [torchrun_channel.Channel(environment, []) for environment in ranks(2)]
        channels[other].wait_until(lambda: silent in channels[other].seen)  # noqa: B023 - called here
        monkeypatch.setattr(channels[silent], "_exchange_facts", lambda store: None)
        with pytest.raises(WorkerError, match=rf"^rank {silent} has not responded for 0 s$"):
            channels[other].wait_until(lambda: False, 20)
        for channel in reversed(channels):  # rank 0 serves the store
            channel.close()


def test_a_rank_that_was_stopped_itself_is_not_waiting():
    channels = [torchrun_channel.Channel(environment, []) for environment in ranks(2)]
    channels[0].wait_until(channels[0].all_joined)
    channels[0]._last_wait -= 1000
    channels[0].check()
    for channel in reversed(channels):
        channel.close()


def test_a_rank_beyond_the_world_of_rank_zero_is_refused():
    local = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "LOCAL_RANK": "0"}
    ranks = [{**local, "RANK": rank, "WORLD_SIZE": size} for rank, size in (("0", "2"), ("2", "3"))]
    first, third = map(TorchrunEnvironment.read, ranks)
    controller = torchrun_tasks.TorchrunController(first, [])
    with pytest.raises(
        ConfigError, match="rank 2 was started with WORLD_SIZE=3 and '', rank 0 was started with WORLD_SIZE=2 and ''"
    ):
        torchrun_tasks.TorchrunAgent(third, []).serve(print)
    controller.channel.close()


def test_an_agent_that_was_interrupted_is_not_waited_for(monkeypatch):
    """It had the same signal as rank 0."""
    first, second = ranks(2)
    controller = torchrun_tasks.TorchrunController(first, [])

    def interrupted(*_):
        raise signals.Interrupted(signal.SIGTERM)

    monkeypatch.setattr(torchrun_tasks.TorchrunAgent, "_answer", interrupted)
    controller._publish("load")
    with pytest.raises(signals.Interrupted):
        torchrun_tasks.TorchrunAgent(second, []).serve(print)
    monkeypatch.setattr(torchrun_tasks, "END_SECONDS", math.inf)
    ending = threading.Thread(target=controller.end, args=(143,), daemon=True)
    ending.start()
    ending.join(20)
    assert not ending.is_alive()


def test_without_the_variables_dpexp_was_started_by_hand():
    assert TorchrunEnvironment.read({"LOCAL_RANK": "0"}) is None


def test_a_rank_that_is_no_number_is_refused():
    with pytest.raises(ConfigError, match=r"RANK, .* must be as torchrun sets them: .*'a'"):
        TorchrunEnvironment.read(CONTRACT | {"RANK": "a"})


def test_half_a_contract_is_refused():
    partial = {name: value for name, value in CONTRACT.items() if name != "MASTER_PORT"}
    with pytest.raises(ConfigError, match="RANK and WORLD_SIZE are set, as by torchrun, but not MASTER_PORT"):
        TorchrunEnvironment.read(partial)


def test_a_stray_variable_without_torchrun_changes_nothing(dpexp, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert dpexp(*TINY).status == 0
    recorded = json.loads((tmp_path / "out" / "result.json").read_text())
    assert recorded["environment"]["local_world_size"] is None


def test_workers_must_be_what_torchrun_started():
    world = TorchrunEnvironment.read(CONTRACT)
    with pytest.raises(ConfigError, match=r"workers=2, but torchrun started 4 processes .*: set workers=4"):
        world.check(tiny("strategy=ddp", "workers=2"))


@pytest.mark.parametrize("strategy", ["sync_dp", "emulated"])
def test_strategies_of_one_machine_name_the_one_for_several(strategy):
    with pytest.raises(ConfigError, match=rf"strategy={strategy} under torchrun: .* choose strategy=ddp"):
        TorchrunEnvironment.read(CONTRACT).check(tiny(f"strategy={strategy}", "workers=4"))


@pytest.mark.parametrize(
    ("variables", "workers", "told"),
    [
        ({}, 4, "start one dpexp on each host"),
        ({"LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"}, 6, "workers=6 on 4 hosts: choose a multiple of 4, or 1"),
    ],
    ids=["several dpexp on a host", "uneven hosts"],
)
def test_a_script_needs_one_dpexp_and_as_many_workers_on_each_host(variables, workers, told):
    config = compose_config(f"workers={workers}", "script.command='torchrun --nproc-per-node={workers_per_host} x.py'")
    with pytest.raises(ConfigError, match=told):
        TorchrunEnvironment.read({**CONTRACT, **variables}).check(config)


@pytest.mark.slow
def test_a_process_that_dies_silently_is_missed(tmp_path):
    """Rank 1's main process is killed while it loads: rank 0 must not wait forever."""
    own = [{"RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    hurry = "torchrun_channel.SILENCE_SECONDS, torchrun_tasks.END_SECONDS = 2.0, 0.1"
    waiting, killed = changed(tmp_path, own, [TRAINING] * 2, hurry, f"{KILL}torchrun_tasks.load = kill; {hurry}")
    assert (waiting.status, killed.status) == (1, -signal.SIGKILL)
    assert "rank 1 has not responded for 2 s" in waiting.err
