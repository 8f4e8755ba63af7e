"""A result file comes back as it was written; what isn't one is named."""

from __future__ import annotations

import json

import pytest
from results_helpers import result

from dpexp.errors import ResultError
from dpexp.results import storage
from dpexp.results.schema import diverged
from dpexp.results.storage import finite, read, write


def some():
    return result(seconds=[9.0, 1.0, 1.1], baseline=[9.0, 2.0, 2.1])


def test_a_result_comes_back_as_written(tmp_path):
    assert read(write(some(), tmp_path)) == some()


def test_discarded_blocks_are_kept_raw_but_do_not_count():
    assert [block.candidate.seconds for block in some().blocks] == [9.0, 1.0, 1.1]
    assert [block.candidate.seconds for block in some().kept()] == [1.0, 1.1]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: len(text) // 2], "damaged"),
        (lambda text: "", "damaged"),
        (lambda text: "[]", "not a result of dpexp"),
        (lambda text: text.replace('"version": 8', '"version": 3'), "version 3, but this dpexp reads version 8"),
        (lambda text: text.replace('"status": "ok"', '"status": "great"'), r"damaged \(status"),
        (lambda text: text.replace('"workers": 2', '"workers": 0', 1), r"damaged \(config.workers"),
        (lambda text: text.replace("1.1\n", "0\n", 1), r"damaged \(blocks.2.candidate.turn_seconds.0"),
        (lambda text: text.replace('"warmup": false', '"warmup": true'), "no block was kept"),
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
    path = write(some(), tmp_path)
    monkeypatch.setattr("os.fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(ResultError, match="No space left"):
        write(result(seconds=[1.0, 5.0], baseline=None), tmp_path)
    assert read(path) == some()
    assert [entry.name for entry in tmp_path.iterdir()] == [storage.FILE_NAME]


def test_a_loss_that_is_no_number_means_diverged(tmp_path):
    from dataclasses import replace

    one = some()
    bad = replace(one.blocks[0], candidate=replace(one.blocks[0].candidate, epoch_losses=[finite(float("nan"))]))
    assert diverged([bad])
    assert not diverged(one.blocks)
    for name in ("baseline", "best_sequential", "independent"):
        assert diverged([replace(one.blocks[0], **{name: bad.candidate})])
    json.loads(write(replace(one, status="diverged", blocks=[bad]), tmp_path).read_text(), parse_constant=pytest.fail)
