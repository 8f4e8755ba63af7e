"""What the machine does to dpexp: memory that runs out, full and read-only disks, others at the same time.

Some of these faults need a cgroup or a mount of their own, which only root may make; elsewhere they are skipped.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest
import torch
from conftest import TINY, tiny
from deeds import Place
from fault_helpers import ROOT, children, faulty_model, marked, run_job

from dpexp import app
from dpexp.data.dataset import load
from dpexp.errors import DataError, WorkerError
from dpexp.machine import environment
from dpexp.phases import COMPUTE
from dpexp.processes.heartbeat import TRAINING
from dpexp.processes.shared_memory import SharedTensors
from dpexp.results import storage

OWN = [override for override in TINY if not override.startswith("model.")]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}


def can_mount() -> bool:
    return not subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode


def gone(cgroup: Path) -> None:
    """Remove a cgroup, as soon as the last process has left it: the fork server ends soon after its client."""
    until = time.monotonic() + 10
    while True:
        try:
            return cgroup.rmdir()
        except OSError:
            if time.monotonic() > until:
                raise
            os.sched_yield()


@pytest.fixture
def limited():
    """A cgroup of 900 MiB, as a command that puts what follows into it."""
    limits = {"memory": "memory.limit_in_bytes", "": "memory.max"}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in limits:
            continue
        base = Path("/sys/fs/cgroup") / controllers / path.lstrip("/")
        folder = base / f"dpexp-{uuid.uuid4().hex}"
        try:
            folder.mkdir()
            (folder / limits[controllers]).write_text(str(900 * 2**20))
        except OSError:
            with contextlib.suppress(OSError):
                folder.rmdir()
            continue
        yield ["sh", "-c", f'echo $$ > {folder}/cgroup.procs && exec "$@"', "sh"]
        gone(folder)
        return
    pytest.skip("no cgroup with a limit of its own can be made here")


@pytest.mark.slow
def test_a_worker_that_the_kernel_kills_for_memory_is_said_so(tmp_path, limited):
    model = faulty_model(tmp_path, "eat_memory", Place(TRAINING, COMPUTE, 2), victim=1)
    command = [*limited, sys.executable, "-m", "dpexp", *OWN, *model, f"hydra.run.dir={tmp_path}/out"]
    run = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 1
    assert "rank 1 was killed by SIGKILL, probably out of memory (the cgroup allows 900 MiB; the machine" in run.stderr
    assert "while training, in step 2, phase compute" in run.stderr
    assert run.stderr.count("\n") == 1


@pytest.mark.slow
def test_data_beyond_the_cgroups_limit_are_refused_before_the_kernel_kills(tmp_path, limited):
    sizes = ["data=synthetic", "data.size=400000", "data.shape=[784]"]
    command = [*limited, sys.executable, "-m", "dpexp", *sizes, f"hydra.run.dir={tmp_path}/out"]
    run = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stderr.count("\n")) == (2, 1)
    assert "of memory are available: choose fewer" in run.stderr


def test_more_shared_memory_than_there_is_is_refused_before_it_is_touched():
    much = 2 * environment.available_memory_bytes()
    with pytest.raises(WorkerError, match="are available; choose a smaller"):
        SharedTensors.allocate({"a": ((much,), torch.uint8)})
    with pytest.raises(DataError, match="of memory are available"):
        load(tiny(f"data.size={much // 64}"))


@pytest.mark.slow
def test_a_tiny_dev_shm_is_no_hindrance(tmp_path):
    """Nothing lies there: shared memory has no name, and only the machine's memory limits it."""
    if not can_mount():
        pytest.skip("no mount of its own can be made here")
    run = shlex.join([sys.executable, "-m", "dpexp", *TINY, "workers=3", f"hydra.run.dir={tmp_path}/out"])
    script = f"mount -t tmpfs -o size=4k none /dev/shm && {run}"
    subprocess.run(["unshare", "-m", "sh", "-c", script], cwd=tmp_path, env=ENVIRONMENT, check=True, timeout=120)
    assert storage.read(tmp_path / "out" / "result.json").status == "ok"


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_a_disk_that_gets_full_or_read_only_stops_the_sweep_with_one_line(tmp_path, fault):
    """Full: at whatever write it happens to be. Read-only: in the second of three jobs."""
    if not can_mount():
        pytest.skip("no mount of its own can be made here")
    out = tmp_path / "out"
    out.mkdir()
    size, seeds = ("100k", ",".join(map(str, range(10)))) if fault == "full" else ("8m", "1,2,3")
    model = faulty_model(tmp_path, "make_output_read_only", Place(TRAINING, COMPUTE, 2), victim=0, training=2)
    faulty = [*OWN, *model] if fault == "read-only" else TINY
    arguments = ["-m", *faulty, "workers=1", "measurement.baseline=none", f"seed={seeds}", f"hydra.sweep.dir={out}"]
    script = (
        f"mount -t tmpfs -o size={size} none {out} && {shlex.join([sys.executable, '-m', 'dpexp', *arguments])}; "
        f"echo $? > {tmp_path}/status; cp -r {out} {tmp_path}/copy"
    )
    command = ["unshare", "-m", "sh", "-c", script]
    run = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert (tmp_path / "status").read_text() == "1\n"
    reason = {"full": "No space left on device", "read-only": "Read-only file system"}[fault]
    assert f"{reason}; to finish, run: python -m dpexp" in run.stderr
    assert "Traceback" not in run.stderr
    assert "wrote" not in run.stdout
    statuses = [storage.read(path).status for path in (tmp_path / "copy").glob("*/result.json")]
    assert "ok" in statuses
    assert set(statuses) <= {"ok", "unfinished"}


MANY = """
import os, sys
from dpexp import app
from dpexp.launchers import local  # once for all: it takes longer than the runs
from dpexp.measurement import job
from dpexp.report import writer
children = [os.fork() or os._exit(app.main(sys.argv[1:])) for _ in range(3)]
sys.exit(sum(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


@pytest.mark.slow
def test_many_runs_at_once_do_not_meet_and_know_that_they_were_not_alone(tmp_path):
    marker = uuid.uuid4().hex
    command = [sys.executable, "-c", MANY, *TINY, "strategy=ddp", "workers=2", "epochs=20"]
    environment = {**ENVIRONMENT, "MARKER": marker}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert (run.returncode, run.stderr) == (0, "")
    found = [storage.read(path) for path in tmp_path.glob("outputs/runs/*/result.json")]
    assert [one.status for one in found] == ["ok"] * 3
    assert any(warning.kind == "other programs" for one in found for warning in one.warnings)
    assert "other programs used" in run.stdout
    _, alive = psutil.wait_procs(marked(marker), timeout=10)
    assert not alive


def test_folders_of_runs_in_the_same_second_are_different(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [app.main(["strategy=sequential", "workers=1", *TINY]) for _ in range(2)] == [0, 0]
    assert len(list(Path("outputs/runs").iterdir())) == 2


def test_when_the_fork_server_dies_the_job_fails_and_the_next_one_runs(tmp_path):
    run_job(tmp_path, "workers=2")
    (fork_server,) = [one for one in psutil.Process().children() if "forkserver" in " ".join(one.cmdline())]
    fork_server.kill()
    while fork_server.status() != psutil.STATUS_ZOMBIE:
        pass
    assert run_job(tmp_path, "workers=2")
    assert not children()
    assert json.loads((tmp_path / "result.json").read_text())["status"] == "ok"
