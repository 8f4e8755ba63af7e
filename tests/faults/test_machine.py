"""What the machine does to dpexp: memory that runs out, full and read-only disks, others at the same time.

Some of these faults need a cgroup or a mount of their own, which only root may make; elsewhere they are skipped.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import programs
import psutil
import pytest
import torch
from basics import PYTHONPATH, TINY, tiny
from fault_helpers import faulty_model, marked
from worker_actions import Place

from dpexp.analysis.warnings import OTHER_CORES
from dpexp.cli import app
from dpexp.errors import DataError, WorkerError
from dpexp.machine import environment
from dpexp.phases import COMPUTE
from dpexp.processes.heartbeat import TRAINING
from dpexp.processes.shared_memory import SharedTensors
from dpexp.results import storage
from dpexp.train.data.dataset import load

OWN = [override for override in TINY if not override.startswith("model.")]
ENVIRONMENT = {**os.environ, "PYTHONPATH": PYTHONPATH}


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
    """The environment of a program that enters a cgroup of 900 MiB."""
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
        yield ENVIRONMENT | {programs.FIRST: f"open('{folder}/cgroup.procs', 'w').write('0')"}
        gone(folder)
        return
    pytest.skip("no cgroup with a limit of its own can be made here")


@pytest.mark.slow
def test_a_worker_that_the_kernel_kills_for_memory_is_reported_as_such(tmp_path, limited):
    model = faulty_model(tmp_path, "eat_memory", Place(TRAINING, COMPUTE, 2), victim=1)
    command = [sys.executable, "-m", "dpexp", *OWN, *model, f"hydra.run.dir={tmp_path}/out"]
    run = programs.run(command, cwd=tmp_path, env=limited)
    assert run.returncode == 1
    assert "rank 1 was killed by SIGKILL, probably out of memory (the cgroup allows 900 MiB; the machine" in run.stderr
    assert "while training, in step 2, phase compute" in run.stderr
    assert run.stderr.count("\n") == 1


@pytest.mark.slow
def test_data_beyond_the_cgroups_limit_are_refused_before_the_kernel_kills(tmp_path, limited):
    sizes = ["data=synthetic", "data.size=400000", "data.shape=[784]"]
    command = [sys.executable, "-m", "dpexp", *sizes, f"hydra.run.dir={tmp_path}/out"]
    run = programs.run(command, cwd=tmp_path, env=limited)
    assert (run.returncode, run.stderr.count("\n")) == (2, 1)
    assert "of memory are available: choose fewer" in run.stderr


def test_more_shared_memory_than_there_is_is_refused_before_it_is_touched():
    much = 2 * environment.available_memory_bytes()
    with pytest.raises(WorkerError, match="are available; choose a smaller"):
        SharedTensors.allocate({"a": ((much,), torch.uint8)})
    with pytest.raises(DataError, match="of memory are available"):
        load(tiny(f"data.size={much // 64}"))


ON_SMALL_DISK = """
import atexit, ctypes, shutil, subprocess
NEW_MOUNTS = 0x20000
assert not ctypes.CDLL(None).unshare(NEW_MOUNTS)
subprocess.run(["mount", "--make-rprivate", "/"], check=True)
for size, folder in (("4k", "/dev/shm"), ("{size}", "{out}")):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=" + size, "none", folder], check=True)
atexit.register(shutil.copytree, "{out}", "{copy}")
"""


def on_small_disk(folder: Path, size: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A sweep without baselines on a disk of this size, with hardly any /dev/shm; its results are copied."""
    if not can_mount():
        pytest.skip("no mount of its own can be made here")
    out = folder / "out"
    out.mkdir()
    sweep = ["-m", *arguments, "measurement.baseline=none", f"hydra.sweep.dir={out}"]
    first = ON_SMALL_DISK.format(size=size, out=out, copy=folder / "copy")
    command = [sys.executable, "-m", "dpexp", *sweep]
    return programs.run(command, cwd=folder, env=ENVIRONMENT | {programs.FIRST: first})


def assert_stopped(folder: Path, run: subprocess.CompletedProcess[str], reason: str) -> None:
    """With one line that says why, and how to go on; what was measured before stays."""
    assert run.returncode == 1
    assert f"{reason}; to finish, run: python -m dpexp" in run.stderr
    assert "Traceback" not in run.stderr
    assert "wrote" not in run.stdout
    statuses = [storage.read(path).status for path in (folder / "copy").glob("*/result.json")]
    assert "ok" in statuses
    assert set(statuses) <= {"ok", "unfinished"}


@pytest.fixture(scope="module")
def read_only(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A sweep whose disk gets read-only in the second of three jobs: its folder, and how it ended."""
    folder = tmp_path_factory.mktemp("read_only")
    model = faulty_model(folder, "make_output_read_only", Place(TRAINING, COMPUTE, 2), victim=0, training=2)
    return folder, on_small_disk(folder, "8m", *OWN, *model, "workers=3", "seed=1,2,3")


@pytest.mark.slow
def test_a_tiny_dev_shm_is_no_hindrance(read_only):
    """Nothing lies there: shared memory has no name, and only the machine's memory limits it."""
    folder, _ = read_only
    assert storage.read(folder / "copy" / "0" / "result.json").status == "ok"


@pytest.mark.slow
def test_a_disk_that_gets_read_only_stops_the_sweep_with_one_line(read_only):
    assert_stopped(*read_only, "Read-only file system")


@pytest.mark.slow
def test_a_disk_that_gets_full_stops_the_sweep_with_one_line(tmp_path):
    """At whatever write it happens to be."""
    run = on_small_disk(tmp_path, "100k", *TINY, "workers=1", f"seed={','.join(map(str, range(10)))}")
    assert_stopped(tmp_path, run, "No space left on device")


@pytest.mark.slow
def test_simultaneous_runs_are_separate_and_record_each_other(tmp_path):
    marker = uuid.uuid4().hex
    command = [sys.executable, "-m", "dpexp", *TINY, "strategy=ddp", "workers=2", "epochs=20"]
    environment = {**ENVIRONMENT, "MARKER": marker}
    programs.server()  # once, before several threads ask for it
    with ThreadPoolExecutor() as pool:
        runs = list(pool.map(lambda _: programs.run(command, cwd=tmp_path, env=environment), range(3)))
    assert [(run.returncode, run.stderr) for run in runs] == [(0, "")] * 3
    found = [storage.read(path) for path in tmp_path.glob("outputs/runs/*/result.json")]
    assert [one.status for one in found] == ["ok"] * 3
    assert any(block.conditions.other_cores > OTHER_CORES for one in found for block in one.blocks)
    assert any("other programs used" in run.stdout for run in runs)
    _, alive = psutil.wait_procs(marked(marker), timeout=10)
    assert not alive


def test_folders_of_runs_in_the_same_second_are_different(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [app.main(["strategy=sequential", "workers=1", *TINY]) for _ in range(2)] == [0, 0]
    assert len(list(Path("outputs/runs").iterdir())) == 2
