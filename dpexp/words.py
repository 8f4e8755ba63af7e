"""Words for people, as messages and tables share them."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """A count with its noun: 1 worker, 2 workers, 1,000 samples, 3 processes."""
    plural = "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{plural if count != 1 else ''}"
