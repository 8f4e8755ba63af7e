"""Simulated sweeps whose speedups follow a known law of scaling."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from dpexp.analysis.decision.laws import Law, laws
from dpexp.analysis.intervals import Estimate
from dpexp.analysis.row import Row

TRUTHS = {
    "Amdahl's law": [0.04],
    "Gustafson's law": [0.12],
    "the Universal Scalability Law": [0.03, 0.002],
    "the goodput model": [0.2, 0.03, 2.0],
    "the alpha-beta model": [1.05, 0.005, 0.1],
}


def law_named(name: str, batch_scope: str = "per_worker") -> Law:
    """One of the laws."""
    return next(law for law in laws(batch_scope) if law.name == name)


def truth(name: str, workers: Sequence[float]) -> np.ndarray:
    """The speedups of the law with the parameters of TRUTHS."""
    return law_named(name).speedup(np.array(workers, dtype=float), np.array(TRUTHS[name]))


def simulated(
    name: str, seed: int = 0, counts: Sequence[int] = (2, 3, 4, 6, 8, 12, 16, 24, 32), noise: float = 0.02
) -> list[Row]:
    """Rows whose speedups follow the law, each with noise, and with intervals that know how much."""
    generator, half = np.random.default_rng(seed), math.exp(1.96 * noise)
    speedups = truth(name, counts) * np.exp(generator.normal(0, noise, len(counts)))
    return [
        Row(
            "ok",
            workers=count,
            speedup=Estimate(speedup, speedup / half, speedup * half),
            oversubscribed=False,
            batch_scope="per_worker",
        )
        for count, speedup in zip(counts, speedups.tolist(), strict=True)
    ]
