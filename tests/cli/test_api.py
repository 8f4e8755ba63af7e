"""dpexp in a notebook or a program of one's own."""

from __future__ import annotations

import os
import subprocess
import sys
from multiprocessing import forkserver

import matplotlib.figure
import nbformat
import numpy as np
import pandas as pd
import pytest
from basics import ROOT, TINY
from nbclient import NotebookClient
from programs import Program, run

import dpexp
from dpexp.errors import ConfigError, ResultError

QUICK = [*TINY, "measurement.repeats=2"]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep's folder, and its table."""
    folder = tmp_path_factory.mktemp("api") / "out"
    return folder, dpexp.sweep(*QUICK, "workers=1,2", folder=folder)


def test_a_run_gives_its_row(tmp_path):
    row = dpexp.run(*QUICK, "workers=1", folder=tmp_path / "out")
    assert row.workers == 1
    assert row.speedup.low < row.speedup.value < row.speedup.high
    assert (tmp_path / "out" / "result.json").exists()


def test_the_same_process_measures_other_files(tmp_path):
    for name in ("a", "b"):
        arrays = {f"{split}_inputs": np.full((200, 3), float(name == "a")) for split in ("train", "test")}
        labels = {f"{split}_labels": np.arange(200) % 2 for split in ("train", "test")}
        np.savez(tmp_path / f"{name}.npz", **arrays, **labels)
        data = ["data=arrays", f"data.path={tmp_path / name}.npz", "data.size=100"]
        settings = [text for text in QUICK if not text.startswith("data")]
        assert dpexp.run(*settings, *data, "workers=1", folder=tmp_path / name).status == "ok"


def test_a_sweep_gives_the_table_and_writes_the_report(swept):
    folder, table = swept
    assert table.workers.tolist() == [1, 2]
    assert table.status.tolist() == ["ok", "ok"]
    assert (folder / "report.html").exists()


def test_a_table_is_loaded_again(swept):
    folder, table = swept
    assert dpexp.load(folder).equals(table)


def test_a_sweep_can_be_resumed_by_the_command_line(swept, dpexp):  # dpexp: the fixture
    outcome = dpexp("-m", *QUICK, "workers=1,2", f"resume={swept[0]}")
    assert outcome.status == 0
    assert "2 of 2 jobs had already been measured" in outcome.out


def test_workers_of_later_calls_find_imported_what_any_of_them_needs(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(forkserver, "set_forkserver_preload", asked.append)
    dpexp.run(*QUICK, "workers=1", folder=tmp_path / "out")
    assert "torch._dynamo" in asked[0]


@pytest.mark.parametrize("name", ["speedup_by_workers", "losses", "efficiency", "speedup", "time"])
def test_every_figure_is_drawn_into_axes(swept, name):
    figure = matplotlib.figure.Figure()
    axes = figure.subplots()
    assert dpexp.plot(swept[1], name, axes) is axes
    assert axes.has_data()
    assert axes.get_legend() is not None


def test_another_figure_than_those_of_the_report_is_refused_with_the_choices(swept):
    with pytest.raises(ValueError, match=r"no figure 'speeedup': choose from .*speedup"):
        dpexp.plot(swept[1], "speeedup")


def test_several_series_share_no_figure(swept):
    table = swept[1].assign(series=["a", "b"])
    with pytest.raises(ValueError, match="one series, not 2"):
        dpexp.plot(table)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: dpexp.run("workers=two"), ConfigError),
        (lambda: dpexp.sweep("workers=1,2", "nothere=3"), ConfigError),
        (lambda: dpexp.load("nothere"), ResultError),
    ],
)
def test_mistakes_are_errors_of_one_line(call, error):
    with pytest.raises(error) as raised:
        call()
    assert "\n" not in str(raised.value)


def test_experiments_are_sweeps():
    with pytest.raises(ConfigError, match="experiment=quick: this is a sweep"):
        dpexp.run("experiment=quick")


@pytest.mark.slow
def test_a_program_needs_no_main_guard(tmp_path):
    (tmp_path / "mine.py").write_text(
        f"import dpexp\nprint('started')\nrow = dpexp.run(*{[*QUICK, 'workers=2']}, folder='out')\nprint(row.workers)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    outcome = run([sys.executable, "mine.py"], cwd=tmp_path, env=environment)
    assert outcome.stdout.split() == ["started", "2"], outcome.stderr


@pytest.mark.slow
def test_the_example_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.setattr("jupyter_client.launcher.Popen", Program)
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")  # as kernels do before an import
    text = (ROOT / "examples" / "assignment.ipynb").read_text()
    quick = text.replace('"data.size=5000', '"measurement.max_seconds=1\\", \\"data.size=500')
    assert quick != text
    notebook = nbformat.reads(quick, as_version=4)
    done = NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in done.cells for output in cell.get("outputs", [])]
    assert not [output for output in shown if output.output_type == "error"]
    assert sum("image/png" in output.get("data", {}) for output in shown) == 2
    assert [output for output in shown if output.get("name") == "stdout"][-1].text.startswith("emulated: ")


def test_the_command_line_does_without_the_functions():
    code = "import sys, dpexp; sys.exit('dpexp.cli.api' in sys.modules or 'pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_table_can_be_kept_as_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    table = dpexp.load(ROOT / "outputs" / "example")
    table.to_parquet(tmp_path / "results.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "results.parquet"), table, check_dtype=False)
