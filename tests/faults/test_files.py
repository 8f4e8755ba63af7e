"""Files: the old or the new one whatever happens; what is damaged is named, left out, and never run."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import resource
import signal
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from basics import TINY
from fault_helpers import faulty_model, run_job
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from results_helpers import changed, result, with_phases, write_sweep
from worker_actions import Place

from dpexp.analysis.table import aggregate
from dpexp.errors import ResultError
from dpexp.machine.files import remove_leftovers, write_atomically
from dpexp.phases import COMPUTE, PHASES
from dpexp.processes.heartbeat import TRAINING
from dpexp.report.writer import write_report
from dpexp.results import storage

BASE = [override for override in TINY if not override.startswith("model.")]


def content(number: int) -> bytes:
    """Of a length that differs each time, and known from its beginning."""
    return f"{number} ".encode() * (1 + number * 7919 % 40_000)


def is_whole(found: bytes) -> bool:
    return found == content(int(found.split()[0]))


def write_for_ever(path: Path) -> None:
    number = 0
    while True:
        write_atomically(path, content(number := number + 1))


@pytest.mark.parametrize("seed", range(8))
def test_a_writer_killed_at_any_moment_leaves_a_whole_file(tmp_path, seed):
    path = tmp_path / "result.json"
    write_atomically(path, content(0))
    writer = multiprocessing.get_context("fork").Process(target=write_for_ever, args=(path,))
    writer.start()
    assert all(is_whole(path.read_bytes()) for _ in range(random.Random(seed).randint(1, 400)))
    assert writer.pid is not None
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    assert is_whole(path.read_bytes())
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_contents_are_flushed_before_the_rename_and_the_folder_after(tmp_path, monkeypatch):
    seen = []

    def recorded(name, real):
        def call(*arguments):
            kind = "folder" if name == "fsync" and Path(f"/proc/self/fd/{arguments[0]}").resolve().is_dir() else "file"
            seen.append(name if name == "replace" else f"{name} {kind}")
            return real(*arguments)

        return call

    monkeypatch.setattr(os, "fsync", recorded("fsync", os.fsync))
    monkeypatch.setattr(Path, "replace", recorded("replace", Path.replace))
    write_atomically(tmp_path / "result.json", "x")
    assert seen == ["fsync file", "replace", "fsync folder"]


@pytest.mark.parametrize("seed", range(8))
def test_a_disk_that_takes_no_more_at_any_byte_leaves_the_old_result(tmp_path, seed):
    """The kernel's limit on the size of files stands for the disk: it, too, refuses in the middle of a write."""
    old, new = result(seconds=[1.0, 1.0], baseline=None), result(seconds=[2.0] * 9, baseline=None)
    size = storage.write(new, tmp_path).stat().st_size
    path = storage.write(old, tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (random.Random(seed).randrange(size), before[1]))
    try:
        with pytest.raises(ResultError, match=r"can't write .*: File too large"):
            storage.write(new, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert storage.read(path) == old
    assert list(tmp_path.iterdir()) == [path]


def test_a_leftover_is_no_result_and_goes_when_the_job_runs_again(tmp_path):
    leftover = tmp_path / ".result.json.0123.part"
    leftover.write_text("{")
    with pytest.raises(ResultError, match="no job found below"):
        aggregate([tmp_path])
    run_job(tmp_path)
    assert not leftover.exists()


def test_an_output_folder_that_vanishes_stops_the_sweep_with_one_line(dpexp, tmp_path):
    model = faulty_model(tmp_path, "remove_output", Place(TRAINING, COMPUTE, 2), victim=0)
    outcome = dpexp("-m", *BASE, *model, "workers=1", "seed=1,2", "measurement.baseline=none")
    assert outcome.status == 1
    assert f"can't write {tmp_path}/out/0/result.json: No such file or directory; to finish, run" in outcome.err
    assert "Traceback" not in outcome.err
    assert not list(tmp_path.rglob("result.json"))


def test_success_is_not_claimed_for_a_report_that_cannot_be_written(dpexp, tmp_path):
    (tmp_path / "out" / "figures").mkdir(parents=True)
    (tmp_path / "out" / "results.csv").mkdir()
    outcome = dpexp("-m", *TINY, "workers=1", "seed=1,2")
    assert outcome.status == 1
    assert "can't write" in outcome.err
    assert outcome.err.count("\n") == 1
    assert "wrote" not in outcome.out
    assert [storage.read(tmp_path / "out" / job / "result.json").status for job in "01"] == ["ok", "ok"]


def test_a_standard_output_that_is_closed_or_full_loses_no_result(dpexp, tmp_path, monkeypatch):
    full = Path("/dev/full").open("w", buffering=1)  # noqa: SIM115 (closing it fails, too)
    monkeypatch.setattr("sys.stdout", full)
    outcome = dpexp(*TINY)
    with contextlib.suppress(OSError):
        full.close()
    assert outcome.status == 1
    assert outcome.err == "dpexp: can't print: No space left on device\n"
    assert storage.read(tmp_path / "out" / "result.json").status == "ok"


def leaves(value, path=()):
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield (*path, key)
            yield from leaves(inner, (*path, key))


def explained(block):
    """The same block, with the phases of steps and the samples that models receive."""
    arms = {
        name: with_phases(arm, *[dict.fromkeys(PHASES, 0.1)] * len(arm.processes)) for name, arm in block.arms.items()
    }
    for name, arm in arms.items():
        arms[name] = replace(arm, processes=[replace(process, samples=64) for process in arm.processes])
    return changed(block, **arms)


GOOD = json.loads(
    json.dumps(
        storage._ADAPTER.dump_python(result(seconds=[1.0, 1.0], baseline=[2.0, 2.0], change=explained), mode="json")
    )
)
GOOD_TEXT = json.dumps(
    storage._ADAPTER.dump_python(result("workers=4", seconds=[1.0, 1.0], baseline=[2.0, 2.0]), mode="json")
)
ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just([]), st.just({}), st.just([{}])
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.sampled_from(list(leaves(GOOD))), value=ANYTHING, remove=st.booleans())
def test_whatever_stands_in_a_result_the_others_are_aggregated(tmp_path, where, value, remove):
    damaged = json.loads(json.dumps(GOOD))
    inner = damaged
    for key in where[:-1]:
        inner = inner[key]
    if remove:
        del inner[where[-1]]
    else:
        inner[where[-1]] = value
    for job, content in (("0", GOOD_TEXT), ("1", json.dumps(damaged))):
        (tmp_path / job).mkdir(exist_ok=True)
        (tmp_path / job / "result.json").write_text(content)
    try:
        table = aggregate([tmp_path]).table
    except ResultError as error:
        if "different machines" in str(error):  # it claims to be of another machine
            return
        raise
    assert ((table.status == "ok") & (table.workers == 4)).sum() == 1
    assert len(table) == 2


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_result_with_any_bytes_changed_is_named_or_still_a_result(tmp_path, data):
    content = bytearray(json.dumps(GOOD).encode())
    start = data.draw(st.integers(0, len(content)))
    content[start : start + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=40))
    path = tmp_path / "result.json"
    path.write_bytes(content)
    message = f"{path}: a result"
    try:
        storage.read(path)
    except ResultError as error:
        message = str(error)
    assert message.startswith(str(path))
    assert "\n" not in message


def test_damaged_older_and_newer_results_are_named_and_the_rest_is_shown(tmp_path):
    good = result("workers=2", seconds=[1.0, 1.0], baseline=[2.0, 2.0])
    folder = write_sweep(tmp_path, good, *[replace(good)] * 3)
    texts = [path.read_text() for path in sorted(folder.glob("*/result.json"))]
    (folder / "1" / "result.json").write_text(texts[1][:-50])
    now = f'"version": {storage.VERSION}'
    (folder / "2" / "result.json").write_text(texts[2].replace(now, '"version": 4'))
    (folder / "3" / "result.json").write_text(texts[3].replace(now, f'"version": {storage.VERSION + 1}'))
    table = write_report([folder], folder)[0].table
    assert sorted(table.status) == ["ok", "unreadable", "unreadable", "unreadable"]
    words = " ".join(table.warnings)
    for word in ("damaged", "version 4, but this dpexp reads", f"version {storage.VERSION + 1}, but this dpexp reads"):
        assert word in words


EVIL = """<script>document.title='run'</script>\n!!python/object/apply:os.system ["touch RUN"]\n${oc.env:HOME}{{7*7}}"""


def test_nothing_that_lies_in_a_results_folder_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = write_sweep(
        tmp_path / "sweep",
        result("workers=2", seconds=[1.0, 1.0], baseline=[2.0, 2.0]),
        result(seconds=[1.0, 1.0], baseline=None, status="failed", error=EVIL.replace("\n", " "), details=EVIL),
    )
    (folder / "2" / ".hydra").mkdir(parents=True)
    (folder / "2" / ".hydra" / "overrides.yaml").write_text('!!python/object/apply:os.system ["touch RUN"]')
    (folder / "0" / "model.pt").write_bytes(b"cos\nsystem\n(S'touch RUN'\ntR.")
    for name in ("conftest.py", "dpexp.py", "sitecustomize.py"):
        (folder / name).write_text("open('RUN', 'w')")
    write_report([folder], folder)
    page = (folder / "report.html").read_text()
    assert not Path("RUN").exists()
    assert "<script" not in page
    assert "{{7*7}}" in page


def test_saved_weights_are_tensors_that_load_without_running_code(tmp_path):
    run_job(tmp_path, "checkpoint=true")
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in state.values())


def test_a_diverged_job_is_in_no_curve(dpexp, tmp_path):
    outcome = dpexp("-m", *TINY, "optimizer.lr=0.1,1e300", "workers=1")
    assert outcome.status == 1
    table = pd.read_csv(tmp_path / "out" / "results.csv")
    assert sorted(table.status) == ["diverged", "ok"]
    assert table[table.status == "diverged"].seconds.isna().all()
    assert "diverged: a loss is not a finite number" in outcome.err
