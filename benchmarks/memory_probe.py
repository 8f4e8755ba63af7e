"""What a worker runs to have its memory looked at; imports no more than dpexp's own workers do."""

from __future__ import annotations

import time
from typing import Any

import psutil

from dpexp.processes.barrier import BarrierMember
from dpexp.train import worker


def after_training(rank: int, spec: worker.TrainingSpec, shared: Any, seat: BarrierMember, notify: Any) -> int:
    """Bytes that only this process maps, once it has trained; the parent is told when all have."""
    worker.run(rank, spec, shared, None, lambda notice: None)
    private: int = psutil.Process().memory_full_info().uss
    seat.wait()
    notify("all have trained")
    time.sleep(1)  # stay, while the parent looks
    return private
