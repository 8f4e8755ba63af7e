"""One measurement at a time on a machine; whoever holds the lock dies, it is free."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from basics import TINY
from programs import Program

from dpexp.machine.measurement_lock import measurement_lock

HOLDER = """
from dpexp.machine.measurement_lock import measurement_lock
with measurement_lock(print):
    print("held", flush=True)
    input()
"""
WAITS = (
    "dpexp: waiting until process {} has finished measuring: two simultaneous measurements would distort each other\n"
)


@pytest.fixture
def name(monkeypatch, tmp_path):
    monkeypatch.setenv("DPEXP_LOCK", str(tmp_path))
    return str(tmp_path)


def started(*words):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return Program([sys.executable, *words], **pipes)


def never(process):
    raise AssertionError(f"waited for {process}")


def test_a_holder_that_is_killed_leaves_nothing_behind(name):
    holder = started("-c", HOLDER)
    assert holder.stdout.readline() == "held\n"
    seen = []

    def kill(process):
        seen.append(process)
        os.kill(process, signal.SIGKILL)

    with measurement_lock(kill):
        assert seen == [holder.pid]
    holder.communicate()
    with measurement_lock(never):
        pass


def test_another_name_is_another_lock(name, monkeypatch):
    with measurement_lock(never):
        monkeypatch.setenv("DPEXP_LOCK", f"{name}/other")
        with measurement_lock(never):
            pass


def test_without_a_name_there_is_no_lock(monkeypatch):
    monkeypatch.setenv("DPEXP_LOCK", "")
    with measurement_lock(never), measurement_lock(never):
        pass


@pytest.mark.slow
def test_a_second_command_waits_and_says_for_whom(name, tmp_path):
    with measurement_lock(never):
        command = started("-m", "dpexp", *TINY, f"hydra.run.dir={tmp_path}/out")
        assert command.stderr.readline() == WAITS.format(os.getpid())
        assert not (tmp_path / "out" / "result.json").exists()
    _, errors = command.communicate()
    assert (command.returncode, errors) == (0, "")
    assert (tmp_path / "out" / "result.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_command_that_waits_can_be_interrupted(name, tmp_path, number, status):
    with measurement_lock(never):
        command = started("-m", "dpexp", *TINY, f"hydra.run.dir={tmp_path}/out")
        assert command.stderr.readline() == WAITS.format(os.getpid())
        command.send_signal(number)
        command.communicate()
    assert command.returncode == status
