"""The page of promises names tests that exist, and every test of this folder."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
NAMED = set(re.findall(r"`(test_\w+)`", (HERE / "README.md").read_text()))


def found(folder: Path, pattern: str) -> set[str]:
    return {name for path in folder.glob(pattern) for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)}


def test_every_promise_has_its_test():
    assert found(HERE.parent, "**/test_*.py") >= NAMED


def test_every_test_beside_the_page_is_a_promise():
    assert NAMED | found(HERE, "test_promises.py") >= found(HERE, "test_*.py")
