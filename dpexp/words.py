"""Words for people, as messages and tables share them."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """A count with its noun: 1 worker, 2 workers, 1,000 samples."""
    return f"{count:,} {noun}{'s' * (count != 1)}"
