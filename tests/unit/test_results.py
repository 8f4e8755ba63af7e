"""A result file comes back as it was written; what isn't one is named."""

from __future__ import annotations

import re

import pytest
from results_helpers import result

from dpexp.errors import ResultError
from dpexp.results import storage
from dpexp.results.schema import VERSION
from dpexp.results.storage import read, write


def some():
    return result(seconds=[1.0, 1.1], baseline=[2.0, 2.1])


def test_a_result_comes_back_as_written(tmp_path):
    one = some()
    assert read(write(one, tmp_path)) == one


def test_a_setting_that_is_gone_does_no_harm(tmp_path):
    one = some()
    path = write(one, tmp_path)
    path.write_text(path.read_text().replace('"launch": {', '"tracker": {"name": "none"}, "launch": {', 1))
    assert read(path) == one


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: len(text) // 2], "damaged"),
        (lambda text: "", "damaged"),
        (lambda text: "[]", "not a result of dpexp"),
        (lambda text: text.replace(f'"version": {VERSION}', '"version": 3'), "version 3, but this dpexp reads version"),
        (lambda text: text.replace('"status": "ok"', '"status": "great"'), r"damaged \(status"),
        (lambda text: text.replace('"workers": 2', '"workers": 0', 1), r"damaged \(config.workers"),
        (
            lambda text: re.sub(r'"turns": \[\s*\[\s*[\d.e-]+', '"turns": [[0', text, count=1),
            r"damaged \(blocks.0.arms.baseline.turns.0.0",
        ),
        (lambda text: re.sub(r'"blocks": .*, "trainings"', '"blocks": [], "trainings"', text), "there is no block"),
        (lambda text: text.replace('"cpu_model"', '"cpu"'), "environment"),
    ],
)
def test_what_is_no_result_is_named(tmp_path, damage, message):
    path = write(some(), tmp_path)
    path.write_text(damage(path.read_text()))
    with pytest.raises(ResultError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)


def test_a_folder_that_is_no_folder_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultError, match="can't write"):
        write(some(), tmp_path / "file")


def test_a_failed_write_leaves_the_old_result(tmp_path, monkeypatch):
    one = some()
    path = write(one, tmp_path)
    monkeypatch.setattr("os.fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(ResultError, match="No space left"):
        write(result(seconds=[1.0, 5.0], baseline=None), tmp_path)
    assert read(path) == one
    assert [entry.name for entry in tmp_path.iterdir()] == [storage.FILE_NAME]
