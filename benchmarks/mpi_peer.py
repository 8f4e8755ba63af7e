"""A program of its own, started by mpirun: time Open MPI's Allreduce; rank 0 prints seconds as JSON.

mpirun -n WORKERS python -m benchmarks.mpi_peer SIZES REPEATS
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
from mpi4py import MPI


def main() -> None:
    """The mean over repeats, for each size in elements of float32."""
    world = MPI.COMM_WORLD
    seconds = []
    for elements, repeats in zip(*map(json.loads, sys.argv[1:]), strict=True):
        own, total = np.ones(elements, np.float32), np.empty(elements, np.float32)
        for _ in range(3):
            world.Allreduce(own, total)
        world.Barrier()
        started = time.perf_counter()
        for _ in range(repeats):
            world.Allreduce(own, total)
        seconds.append((time.perf_counter() - started) / repeats)
    if reports := world.gather(seconds):
        print(json.dumps([max(times) for times in zip(*reports, strict=True)]))


if __name__ == "__main__":
    main()
