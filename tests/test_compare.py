"""python -m dpexp.compare: folders cell by cell, and two commands in turns."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from conftest import TINY
from results_helpers import MACHINE, QUIET, arm_of, result, write_sweep

from dpexp.analysis.decision.changes import LEVEL, compare_folders
from dpexp.analysis.ratios import COMMAND_DEVIATION, START_DEVIATION, step_seconds
from dpexp.compare import TOO_SLOW, main
from dpexp.errors import ResultError
from dpexp.results.schema import Block
from dpexp.results.storage import write

BLOCKS = [1.0, 1.0, 1.01, 0.99, 1.0]


def folder(path, *jobs, factor=1.0, baseline_factor=1.0, **changes):
    """A sweep of these jobs, each by its overrides, whose trainings take `factor` times as long."""
    results = [
        result(
            *overrides,
            seconds=[factor * seconds for seconds in BLOCKS],
            baseline=[baseline_factor * seconds for seconds in BLOCKS],
            **changes,
        )
        for overrides in jobs
    ]
    return str(write_sweep(path, *results))


TWO_JOBS = (["workers=2"], ["workers=2", "data.size=20000"])


def test_each_configuration_of_both_folders_is_compared(tmp_path, capsys):
    before, after = folder(tmp_path / "a", *TWO_JOBS), folder(tmp_path / "b", *TWO_JOBS, factor=1.2)
    assert main([before, after]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("2 workers, 10,000 samples: 1.200 (1.1")
    assert lines[0].endswith("times the time, slower")
    assert lines[1].startswith("2 workers, 20,000 samples: 1.200")
    assert lines[2] == "2 of 2 cells slower, 0 faster"


@pytest.mark.parametrize(("factor", "status"), [(1.2, TOO_SLOW), (1.06, 0), (1.0, 0), (0.8, 0)])
def test_it_fails_if_slower_by_more_than_asked(tmp_path, factor, status):
    before, after = folder(tmp_path / "a", *TWO_JOBS), folder(tmp_path / "b", *TWO_JOBS, factor=factor)
    assert main([before, after, "--fail-if-slower", "10%"]) == status


def test_what_only_one_folder_has_is_counted(tmp_path, capsys):
    before, after = folder(tmp_path / "a", *TWO_JOBS), folder(tmp_path / "b", TWO_JOBS[0], ["workers=4"])
    main([before, after])
    assert "not compared: 2 configurations that only one folder has" in capsys.readouterr().out


def test_a_baseline_that_changed_too_is_a_warning(tmp_path, capsys):
    before = folder(tmp_path / "a", *TWO_JOBS)
    main([before, folder(tmp_path / "b", *TWO_JOBS, factor=1.2, baseline_factor=1.2)])
    out = capsys.readouterr().out
    assert "warning: in 2 of 2 cells the sequential baseline changed, too" in out
    assert "0 of 2 cells slower, 0 faster" in out


def test_other_code_and_another_torch_may_be_compared(tmp_path):
    newer = replace(MACHINE, code_sha256="other", versions=MACHINE.versions | {"torch": "99"})
    before, after = folder(tmp_path / "a", *TWO_JOBS), folder(tmp_path / "b", *TWO_JOBS, machine=newer)
    assert main([before, after]) == 0


def test_other_machines_are_refused(tmp_path, capsys):
    other = replace(MACHINE, cpu_model="Another CPU")
    before, after = folder(tmp_path / "a", *TWO_JOBS), folder(tmp_path / "b", *TWO_JOBS, machine=other)
    assert main([before, after]) == 1
    assert "measured on different machines" in capsys.readouterr().err


def test_without_a_common_configuration_it_is_said_what_differs(tmp_path, capsys):
    before, after = folder(tmp_path / "a", ["workers=2"]), folder(tmp_path / "b", ["workers=2", "batch.size=32"])
    assert main([before, after]) == 1
    assert "no configuration in common: batch.size=64 against 32" in capsys.readouterr().err


def test_a_folder_without_a_good_result_is_refused(tmp_path):
    failed = folder(tmp_path / "a", ["workers=2"], status="failed", error="no luck")
    with pytest.raises(ResultError, match="no job there was measured to its end"):
        compare_folders(tmp_path / "a", tmp_path / "a")
    assert failed


def test_the_same_thing_is_seldom_called_changed_in_any_cell():
    """Starts differ by what starts usually differ by, and commands by what those do."""
    generator, wrong, trials, count = np.random.default_rng(2), 0, 200, 6
    level = 1 - (1 - LEVEL) / count

    def measured():
        seconds = np.exp(generator.normal(generator.normal(0, COMMAND_DEVIATION), START_DEVIATION, 4))
        return step_seconds([Block(False, {"x": arm_of([[one], [one]])}, QUIET, 1.0) for one in seconds], "x")

    for _ in range(trials):
        changes = [measured().quotient(measured()).estimate(level) for _ in range(count)]
        wrong += any(not change.low <= 1 <= change.high for change in changes)
    assert wrong / trials <= 0.1


def test_a_job_that_failed_after_the_change_fails_the_check(tmp_path, capsys):
    before, after = folder(tmp_path / "a", *TWO_JOBS), folder(tmp_path / "b", TWO_JOBS[0])
    broken = result(*TWO_JOBS[1], seconds=BLOCKS, baseline=BLOCKS, status="failed", error="no luck")
    write(broken, tmp_path / "b")
    assert main([before, after, "--fail-if-slower", "10%"]) == TOO_SLOW
    assert "has no good result" in capsys.readouterr().out


def test_a_mistyped_folder_is_named(tmp_path, capsys):
    assert main([folder(tmp_path / "a", *TWO_JOBS), str(tmp_path / "nothere")]) == 2
    assert "nothere: no such folder" in capsys.readouterr().err


# Two commands.

QUICK = " ".join(text for text in TINY if "precision" not in text and "repeats" not in text)
BOTH = f"{QUICK} measurement.precision=null measurement.repeats=2 measurement.max_seconds=1"


def test_two_commands_are_measured_in_turns(capsys):
    assert main([f"{BOTH} strategy=emulated workers=3", f"{BOTH} strategy=sequential"]) == 0
    answer = capsys.readouterr().out.splitlines()[0]  # a warning may follow, where other programs run
    assert re.search(r": [\d.]+ \([\d.]+ to [\d.]+\) times the time, ", answer)


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ("model=cnn", "model=mlp", "model=cnn against mlp, "),
        ("model.hidden=[7]", "model.hidden=[8]", "[7] against [8]: both commands must train the same model"),
        ("epochs=1", "epochs=2", "10,000 samples against 20,000"),
        ("workers=2", "nothere", "nothere: it is neither a folder nor settings"),
        ("workers=2", "workers=two", "workers"),
        ("workers='2", "workers=2", "No closing quotation"),
    ],
)
def test_commands_that_cannot_be_compared_are_refused(capsys, first, second, said):
    assert main([first, second]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("share", ["50", "five%", "-1%"])
def test_a_share_that_is_none_is_refused(share):
    assert main(["a", "b", f"--fail-if-slower={share}"]) == 2
