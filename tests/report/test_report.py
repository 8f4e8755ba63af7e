"""Table, figures and page from results: complete, repeatable, safe."""

from __future__ import annotations

import io
import re
import sys
from dataclasses import replace

import matplotlib.image
import pandas as pd
import pytest
from results_helpers import result, write_sweep

from dpexp.analysis.table import aggregate
from dpexp.report import __main__ as command
from dpexp.report import terminal
from dpexp.report.writer import write_report


def results_below(folder):
    results = [
        result(f"workers={w}", f"data.size={n}", seconds=[n / w, 1.1 * n / w], baseline=[n, 1.05 * n])
        for w in (1, 2, 4)
        for n in (1000, 2000)
    ]
    return write_sweep(folder / "sweep", *results)


@pytest.fixture
def sweep(tmp_path):
    return results_below(tmp_path)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder of a report of the sweep, for tests that only read it."""
    folder = results_below(tmp_path_factory.mktemp("report"))
    write_report([folder], folder)
    return folder


def texts(svg):
    """The words of a picture: matplotlib notes each line of text in a comment beside its outlines."""
    return " ".join(re.findall(r"<!-- (.*?) -->", svg.read_text()))


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_figure_is_written_as_png_and_svg(written):
    folder = written / "figures"
    names = {path.name for path in folder.iterdir()}
    stems = ("time", "speedup", "efficiency", "speedup_by_workers", "time_1000", "time_2000")
    assert names == {f"{stem}.{kind}" for stem in stems for kind in ("png", "svg")}
    for path in folder.glob("*.png"):
        assert matplotlib.image.imread(path).std() > 0.01


@pytest.mark.drawn
def test_aggregating_again_changes_nothing(written):
    before = files(written)
    write_report([written], written)
    assert files(written) == before


def test_the_csv_holds_a_row_for_each_configuration(written):
    table = pd.read_csv(written / "results.csv")
    assert len(table) == 6
    assert table.set_index(["workers", "data_size"]).loc[(4, 2000), "speedup"] == pytest.approx(3.9, rel=0.05)


def test_a_failed_job_does_not_stop_the_figures_of_the_others(sweep):
    good = result(seconds=[1, 1], baseline=[2, 2])
    failed = replace(good, status="failed", error="rank 0 <was> killed", blocks=[])
    write_sweep(sweep / "more", failed)
    write_report([sweep], sweep)
    assert [*sweep.glob("figures/*.png")]
    assert "rank 0 &lt;was&gt; killed" in (sweep / "report.html").read_text()


def test_only_failures_still_give_a_table_and_a_page(tmp_path):
    failed = replace(result(seconds=[1], baseline=None), status="failed", error="all is lost", blocks=[])
    write_report([write_sweep(tmp_path, failed)], tmp_path)
    assert not (tmp_path / "figures").exists()
    assert "all is lost" in (tmp_path / "results.csv").read_text()


def test_captions_name_the_batch_scope_and_the_baseline(written):
    picture = texts(written / "figures" / "speedup.svg")
    for words in ("batch 64 per worker", "baseline: one process in the same blocks"):
        assert words in picture
    assert "more threads than the 2 usable cores" in picture


def test_a_single_configuration_has_its_figures_too(tmp_path):
    folder = write_sweep(tmp_path, result("workers=2", seconds=[1], baseline=[2]))
    write_report([folder], folder)
    assert len([*folder.glob("figures/*.png")]) == 5


@pytest.mark.drawn
def test_weak_scaling_is_described_as_throughput(tmp_path, capsys):
    overrides = ["data.scope=per_worker", "data.size=1000", "workers=2"]
    folder = write_sweep(tmp_path, result(*overrides, seconds=[2, 2], baseline=[2, 2]))
    assert command.main([str(folder)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert out.startswith("Use 2 workers: 2.00 times (1.97 to 2.03) the throughput of the best single process")
    assert "data per worker: speedup is the ratio of throughputs" in texts(folder / "figures" / "speedup.svg")


def test_what_a_users_code_said_is_shown_as_it_is(tmp_path, capsys):
    error = "mine:boom: [bold]no[/bold]"
    failed = replace(result(seconds=[1], baseline=None), status="failed", error=error, blocks=[])
    assert command.main([str(write_sweep(tmp_path, failed))]) == 0
    assert error in capsys.readouterr().out


def test_the_page_needs_no_other_file(written):
    page = (written / "report.html").read_text()
    assert page.count("data:image/svg+xml;base64,") == 6
    assert 'src="figures' not in page


def test_the_command_line_aggregates_again(sweep, capsys):
    assert command.main([str(sweep)]) == 0
    out = capsys.readouterr().out
    assert "speedup" in out
    assert str(sweep / "results.csv") in out


def test_several_folders_go_into_the_one_named(sweep, tmp_path, capsys):
    more = write_sweep(tmp_path / "more", result("workers=8", seconds=[1, 1], baseline=[2, 2]))
    assert command.main([str(sweep), str(more), "--output", str(tmp_path / "both")]) == 0
    assert len(pd.read_csv(tmp_path / "both" / "results.csv")) == 7


def test_a_bad_folder_is_one_line_and_status_1(tmp_path, capsys):
    assert command.main([str(tmp_path / "nowhere")]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_the_page_tells_what_its_figures_show_and_how_its_table_is_built(written):
    page = (written / "report.html").read_text()
    alternatives = re.findall(r'<img [^>]*alt="([^"]*)"', page)
    assert len(alternatives) == len([*written.glob("figures/*.png")])
    assert "Speedup against workers" in alternatives
    heads = re.findall(r"<th [^>]*>", page)
    assert heads
    assert all('scope="col"' in head for head in heads)
    assert re.search(r'<div class="wide" tabindex="0" role="region" aria-label="[^"]+"><table>\s*<caption>', page)
    assert page.index("<h1>") < page.index('class="answer"') < page.index("<img ") < page.index("<table>")


def in_terminal(folder, columns, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(columns))
    terminal.show_report(aggregate([folder]), [])
    return re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)


@pytest.mark.parametrize("columns", [120, 80, 60, 40])
def test_a_narrow_terminal_drops_whole_columns_and_their_notes(sweep, columns, monkeypatch, capsys):
    out = in_terminal(sweep, columns, monkeypatch, capsys)
    table = out[: out.index("intervals: 95 %")]
    assert "…" not in table
    head = next(line for line in table.splitlines() if line.strip().startswith("workers"))
    assert len(head.rstrip()) <= columns
    for note in ("over best sequential", "accuracy"):
        assert (f"{note}: " in table) == (note in head)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_any_encoding_shows_the_table(sweep, encoding, monkeypatch):
    printed = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(printed, encoding))
    terminal.show_report(aggregate([sweep]), [])
    sys.stdout.flush()
    assert b"3.9" in printed.getvalue()


def test_of_several_series_the_largest_speedup_is_named(tmp_path, capsys):
    times = {"seconds": [1, 1], "baseline": [2, 2]}
    jobs = [result("workers=2", f"model.hidden=[{width}]", **times) for width in (64, 128, 256)]
    assert command.main([str(write_sweep(tmp_path, *jobs))]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Largest speedup: model.hidden=[64]: 2 workers, 2.00 times (1.97 to 2.03) the best single")
