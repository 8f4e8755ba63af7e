"""Where a measurement stands, for whoever shows it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Trainings are counted in epochs, those of discarded blocks and of the baseline included."""

    block: int  # from 1
    blocks: int
    variant: str  # baseline or candidate
    epochs: int
    epoch: int  # finished in this training
    done_fraction: float  # of the job's work
