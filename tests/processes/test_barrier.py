"""Nobody passes a barrier before everybody has come."""

from __future__ import annotations

import pytest
import torch

from dpexp.processes import launch
from dpexp.processes.barrier import BarrierMember
from dpexp.processes.shared_memory import SharedTensors
from dpexp.processes.world import WorldSpec

ROUNDS = 200


def count_together(rank, seat, shared, notify):
    """Raise the own counter in every round; between two barriers all counters must be equal."""
    counts = shared["counts"]
    for number in range(1, ROUNDS + 1):
        counts[rank] = number
        seat.wait()
        if not bool((counts == number).all()):
            return False
        seat.wait()
    return True


@pytest.mark.parametrize("spin_seconds", [0.0, 50e-6])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_all_have_come_when_one_passes(world_size, spin_seconds):
    seats = BarrierMember.create(world_size, spin_seconds)
    shared = SharedTensors.allocate({"counts": ((world_size,), torch.int64)})
    assert all(launch.launch(WorldSpec(count_together, [(seat, shared) for seat in seats])))
