"""A program of its own, so that it starts cold: the class notebook's grid, one run a cell, as it was made.

After the grid it runs the first two cells some more times, warm by then. Prints seconds as JSON.
"""

from __future__ import annotations

import json
import sys

import torch

from benchmarks import peers
from benchmarks.setup import configured
from dpexp.processes.shared_memory import SharedTensors
from dpexp.train.data.dataset import load


def main() -> None:
    """python -m benchmarks.notebook_peer SIZES WORKERS AGAIN."""
    sizes, worker_counts, again = map(json.loads, sys.argv[1:])
    tensors = load(configured(f"data.size={max(sizes)}")).tensors
    images = tensors["train_inputs"].mul(255).round().to(torch.uint8).squeeze(1)

    def cell(size: int, workers: int) -> float:
        part = SharedTensors.copy_of({"images": images[:size], "labels": tensors["train_labels"][:size]})
        return peers.notebook(0, peers.Job(part, workers, 2, 64), None, lambda notice: None)

    grid = [[cell(size, workers) for workers in worker_counts] for size in sizes]
    repeated = [[cell(sizes[0], workers) for workers in worker_counts[:2]] for _ in range(again)]
    print(json.dumps({"grid": grid, "repeated": repeated}))


if __name__ == "__main__":
    main()
