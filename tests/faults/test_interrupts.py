"""Ctrl-C, SIGTERM and the death of the main process, at any moment: no process is left, nothing finished is lost."""

from __future__ import annotations

import os
import random
import shlex
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pandas as pd
import psutil
import pytest
from basics import PYTHONPATH, ROOT, TINY, wait_until
from fault_helpers import IN_ONE_PIECE, children, faulty_model, in_turns, marked, places, segment_places
from programs import Program
from worker_actions import Place

from dpexp.phases import COMPUTE
from dpexp.processes.heartbeat import STARTING, TRAINING
from dpexp.results import storage

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}
BASE = [override for override in TINY if not override.startswith("model.")]
SEVERAL = [*BASE, "workers=2", "measurement.repeats=3"]
SEGMENTS = 3  # of each arm of these
MOMENTS = [
    pytest.param(number, whole, place, id=f"{number.name}-{'in one piece' if whole else 'in turns'}-{place}-{at}")
    for whole, several in ((False, segment_places(seed=11)), (True, places(seed=11)))
    for at, place in enumerate(several)
    for number in [list(STATUS)[at % 2]]
]


def go_on(errors):
    """The overrides of the command that the last line names."""
    words = shlex.split(errors.rpartition("to finish, run: ")[2])
    assert words[:3] == ["python", "-m", "dpexp"]
    return words[3:]


@pytest.mark.parametrize(("number", "whole", "place"), MOMENTS)
def test_a_signal_at_any_moment_of_a_worker_ends_all_in_one_line(dpexp, tmp_path, number, whole, place):
    program = 2 if whole else 1  # after one segment
    fault = faulty_model(tmp_path, "signal_main", place, victim=1, number=number, training=program)
    outcome = dpexp(*BASE, "workers=2", *(IN_ONE_PIECE if whole else in_turns(place)), *fault)
    assert outcome.status == STATUS[number]
    assert outcome.err.startswith(f"dpexp: interrupted by {number.name}; to finish, run: python -m dpexp ")
    assert f"resume={tmp_path}" in outcome.err
    assert outcome.err.count("\n") == 1
    assert not children()
    if whole:
        assert len(storage.read(tmp_path / "out" / "result.json").blocks) == 1


@pytest.mark.parametrize("number", STATUS)
def test_a_signal_before_the_first_worker_ends_in_one_line(dpexp, tmp_path, number):
    outcome = dpexp(*SEVERAL, *faulty_model(tmp_path, "kill", Place(STARTING), victim=-1, number=number))
    assert outcome.status == STATUS[number]
    assert outcome.err.count("\n") == 1


def test_a_sweep_that_measured_nothing_claims_no_file(dpexp, tmp_path):
    fault = faulty_model(tmp_path, "kill", Place(STARTING), victim=-1, number=signal.SIGTERM)
    outcome = dpexp("-m", *SEVERAL, "seed=1,2", *fault)
    assert outcome.status == STATUS[signal.SIGTERM]
    assert outcome.out == ""


@pytest.mark.slow
@pytest.mark.parametrize("seed", [4])
def test_finished_jobs_and_blocks_stay_and_the_line_continues(dpexp, tmp_path, seed):
    """The first job is good; the second is interrupted in a random block, by a random signal."""
    randomly = random.Random(seed)
    number, block = randomly.choice(list(STATUS)), randomly.randint(1, 2)  # so many are finished, of three
    place = Place(TRAINING, COMPUTE, 2)
    program = SEGMENTS + block + 1
    model = faulty_model(tmp_path, "signal_main", place, victim=1, number=number, training=program)
    stopped = dpexp("-m", *SEVERAL, *model, "seed=1,2")
    assert stopped.status == STATUS[number]
    assert pd.read_csv(tmp_path / "out" / "results.csv").status.tolist() == ["ok", "unfinished"]
    first = (tmp_path / "out" / "0" / "result.json").read_bytes()
    unfinished = storage.read(tmp_path / "out" / "1" / "result.json")
    assert len(unfinished.blocks) == block
    again = dpexp(*go_on(stopped.err))
    assert again.status == 0
    assert "1 of 2 jobs had already been measured" in again.out
    assert pd.read_csv(tmp_path / "out" / "results.csv").status.tolist() == ["ok", "ok"]
    assert (tmp_path / "out" / "0" / "result.json").read_bytes() == first
    finished = storage.read(tmp_path / "out" / "1" / "result.json")
    assert finished.blocks[:block] == unfinished.blocks
    assert len(finished.blocks) == 3


def started(tmp_path, *arguments, start=Program):
    """A process of the command line that nobody mistakes for another one's."""
    marker = uuid.uuid4().hex
    process = start(
        [sys.executable, "-m", "dpexp", *arguments, f"hydra.run.dir={tmp_path}/out", f"hydra.sweep.dir={tmp_path}/out"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": PYTHONPATH, "MARKER": marker},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    return process, marker


def no_process_left(marker):
    _, alive = psutil.wait_procs(marked(marker), timeout=10)
    return not alive


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_as_from_a_terminal_is_one_line(tmp_path, number):
    place = Place(TRAINING, COMPUTE, random.Random(number).randint(1, 10))
    process, marker = started(tmp_path, *SEVERAL, *faulty_model(tmp_path, "signal_all", place, victim=0, number=number))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == STATUS[number]
    assert errors.startswith(f"dpexp: interrupted by {number.name}; to finish, run: ")
    assert errors.count("\n") == 1
    assert no_process_left(marker)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_when_the_main_process_is_killed_no_process_is_left_and_the_sweep_can_continue(tmp_path, dpexp, seed):
    """The worker that kills it is stopped then, and the other one waits for it: the kernel has to end them."""
    place = random.Random(seed).choice([one for one in segment_places(seed) if one.step < 9])  # however short it is
    model = faulty_model(tmp_path, "kill_main_and_stop", place, victim=1, training=1 + seed)
    process, marker = started(tmp_path, "-m", *SEVERAL, *model, "seed=1,2")
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert no_process_left(marker)
    assert len(storage.read(tmp_path / "out" / "0" / "result.json").blocks) == seed  # all that were finished
    if seed == 1:  # where there is a block to keep
        again = dpexp("-m", f"resume={tmp_path / 'out'}", *SEVERAL, *model, "seed=1,2")
        assert again.status == 0
        assert pd.read_csv(tmp_path / "out" / "results.csv").status.tolist() == ["ok", "ok"]


@pytest.mark.slow
@pytest.mark.parametrize("library", ["_pydantic_core", "libtorch_python"])
def test_ctrl_c_while_everything_is_still_imported_is_no_traceback(tmp_path, library):
    process, marker = started(tmp_path, *SEVERAL, start=subprocess.Popen)
    maps = Path(f"/proc/{process.pid}/maps")
    assert wait_until(lambda: library in maps.read_text())
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert no_process_left(marker)
