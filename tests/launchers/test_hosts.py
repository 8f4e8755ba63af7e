"""Commands on two hosts: the same parameters, and a lost host is told on both. See test_strategies for the contract."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from basics import SCRIPTS, TINY, tiny, wait_until
from programs import NESTED, Program
from training_helpers import assert_same, trained_state

from testbed.namespaces import HOSTS

# Where the two hosts may be slow to be missed, that is done sooner; see test_torchrun.
MAIN = (
    "import sys; from dpexp.cli import app; from dpexp.launchers import torchrun_channel; "
    "torchrun_channel.SILENCE_SECONDS = 3.0; sys.exit(app.main(sys.argv[1:]))"
)

pytestmark = pytest.mark.slow


@pytest.fixture
def hosts(link, tmp_path):
    """A function that starts so many dpexp on each of both hosts; it returns what runs."""
    shared = {"MASTER_ADDR": next(iter(HOSTS.values())), "MASTER_PORT": "29512", "GLOO_SOCKET_IFNAME": "eth0"}
    shared[NESTED] = "1"  # the scripts start at once, too
    with contextlib.ExitStack() as cleanup:

        def start(each: int, *words: str) -> list[subprocess.Popen[bytes]]:
            running = []
            for rank, (name, local) in enumerate(itertools.product(HOSTS, range(each))):
                own = {"RANK": rank, "WORLD_SIZE": 2 * each, "LOCAL_RANK": local, "LOCAL_WORLD_SIZE": each}
                program = Program(
                    ["ip", "netns", "exec", name, sys.executable, "-c", MAIN, "hydra.run.dir=out", *words],
                    cwd=tmp_path,
                    env=os.environ | shared | {variable: str(value) for variable, value in own.items()},
                    stderr=cleanup.enter_context((tmp_path / f"{rank}.err").open("wb")),
                )
                cleanup.callback(_end, program)
                running.append(program)
            return running

        yield start


def _end(program: subprocess.Popen[bytes]) -> None:
    program.terminate()
    try:
        program.wait(timeout=20)
    except subprocess.TimeoutExpired:
        program.kill()
        program.wait()


def said(folder: Path) -> list[str]:
    return [(folder / f"{rank}.err").read_text() for rank in (0, 1)]


def test_workers_on_two_hosts_end_at_the_sequential_parameters(hosts, tmp_path):
    settings = "strategy=ddp strategy.exchange=shared_memory workers=4 checkpoint=true measurement.max_seconds=1"
    running = hosts(2, *TINY, *settings.split())
    assert [host.wait(timeout=120) for host in running] == [0] * 4, said(tmp_path)
    (block,) = json.loads((tmp_path / "out" / "result.json").read_text())["blocks"]
    candidate = block["arms"]["candidate"]
    assert len(candidate["processes"]) == 4
    assert {len(processes) for steps in candidate["phases"].values() for processes in steps} == {4}
    expected = trained_state(tiny("strategy=sequential"), tmp_path)
    assert_same(torch.load(tmp_path / "out" / "model.pt", weights_only=True), expected, 1e-12)


def lose_the_link(running, tmp_path):
    """Take the link down once the job has started; both hosts miss the other. Returns what they said."""
    begun = tmp_path / "out" / "result.json"  # written when the job starts
    assert wait_until(begun.exists, 60), said(tmp_path)
    subprocess.run(["ip", "-n", next(iter(HOSTS)), "link", "set", "eth0", "down"], check=True)
    assert all(host.wait(timeout=120) != 0 for host in running)
    first, second = said(tmp_path)
    assert "rank 1 has not responded for 3 s" in first
    assert "rank 0 has not responded for 3 s" in second
    return first + second


def test_a_lost_host_is_reported_on_both(hosts, tmp_path):
    running = hosts(1, *TINY, "strategy=ddp", "workers=2", "measurement.max_seconds=600")
    assert "terminate called" not in lose_the_link(running, tmp_path)


SCRIPT = (
    "torchrun --nnodes={hosts} --node-rank={host} --master-addr={head} --master-port={port} "
    f"--nproc-per-node={{workers_per_host}} {SCRIPTS}/train.py --batch {{local_batch_size}}"
)
# One rank on each host, without torchrun.
RANK = (
    "env RANK={host} WORLD_SIZE={workers} MASTER_ADDR={head} MASTER_PORT={port} "
    f"python {SCRIPTS}/train.py --batch {{local_batch_size}}"
)
ONCE = "measurement.repeats=1 measurement.precision=null measurement.best_sequential=false".split()
ALONE = ["workers=2", "batch.size=8", "measurement.baseline=none", *ONCE]


def test_a_script_on_two_hosts_is_one_result(hosts, tmp_path):
    running = hosts(1, *"workers=4 batch.size=8 measurement.max_seconds=2".split(), *ONCE, "--", *SCRIPT.split())
    assert [host.wait(timeout=120) for host in running] == [0, 0], said(tmp_path)
    (path,) = tmp_path.rglob("result.json")
    for block in json.loads(path.read_text())["blocks"]:
        assert {name: len(arm["processes"]) for name, arm in block["arms"].items()} == {"baseline": 1, "candidate": 4}
        assert {len(processes) for steps in block["arms"]["candidate"]["phases"].values() for processes in steps} == {4}


def test_a_script_that_fails_on_another_host_is_reported_with_its_cause(hosts, tmp_path):
    running = hosts(1, *ALONE, "--", *RANK.split(), "--fault", "raise")
    assert [host.wait(timeout=120) for host in running] == [1, 1], said(tmp_path)
    for error in said(tmp_path):
        assert error.count("2 workers: on host 1 it exited with status 1: ValueError: boom in step 20") == 1


def test_a_host_that_is_lost_while_a_script_is_measured_is_reported_on_both(hosts, tmp_path):
    running = hosts(1, *ALONE, "measurement.max_seconds=600", "--", *RANK.split())
    lose_the_link(running, tmp_path)
