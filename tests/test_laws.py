"""Laws of scaling, on simulated curves: recovered, chosen, and refused where measurements can't carry them."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
from law_helpers import TRUTHS, law_named, simulated, truth

from dpexp.analysis.decision.contest import Scaling, contest
from dpexp.analysis.intervals import Estimate

COUNTS = (2, 4, 8, 16, 32)
SWEEPS = 10  # simulated with each law
AMDAHL, UNIVERSAL = "Amdahl's law", "the Universal Scalability Law"


@functools.cache
def settled(name, seed):
    """The contest for a simulated sweep."""
    return contest(simulated(name, seed, COUNTS))


@pytest.mark.parametrize("name", TRUTHS)
def test_every_law_finds_its_parameters_again(name):
    found = contest(simulated(name, noise=0.001))
    fits = {fit.law.name: fit for fit in found.fits}
    assert name in fits
    assert fits[name].parameters == pytest.approx(TRUTHS[name], rel=0.15)


@pytest.mark.parametrize("name", [AMDAHL, "Gustafson's law", UNIVERSAL])
def test_the_law_that_made_the_curve_is_chosen(name):
    assert contest(simulated(name, counts=COUNTS, noise=0.002)).fits[0].law.name == name


@pytest.mark.slow
@pytest.mark.parametrize("name", TRUTHS)
def test_bands_hold_the_true_speedup_of_twice_the_workers(name):
    """In at least 90 % of simulated sweeps."""
    held = 0
    for seed in range(SWEEPS):
        found = settled(name, seed)
        assert isinstance(found, Scaling)
        _, low, high = found.curve([64])[:, 0]
        held += low <= truth(name, [64])[0] <= high
    assert held >= 0.9 * SWEEPS


@pytest.mark.slow
def test_intervals_hold_the_true_parameters():
    """In at least 90 % of simulated sweeps."""
    held, expected = np.zeros(2), np.array(TRUTHS[UNIVERSAL])
    for seed in range(SWEEPS):
        found = settled(UNIVERSAL, seed)
        for fit in found.fits:
            low, high = np.percentile(fit.draws, [2.5, 97.5], axis=0)
            held += (low <= expected) & (expected <= high) if fit.law.name == UNIVERSAL else 0
    assert (held >= 0.9 * SWEEPS).all()


def test_worker_counts_beyond_the_cores_do_not_count():
    measured = [replace(row, oversubscribed=row.workers > 2) for row in simulated(AMDAHL, counts=(2, 4, 8))]
    assert contest(measured) is None


def test_a_curve_that_no_law_predicts_is_refused():
    measured = simulated(AMDAHL, counts=COUNTS)
    measured[2] = replace(measured[2], speedup=Estimate(2.0, 1.98, 2.02))  # 8 workers: a slow node?
    assert contest(measured) is None


def test_the_simplest_law_that_predicts_as_well_is_chosen():
    """Amdahl's law is the Universal Scalability Law without coherence."""
    assert len(settled(AMDAHL, 3).fits[0].law.bounds) == 1


@pytest.mark.parametrize("batch_scope", ["per_worker", "global"])
@pytest.mark.parametrize("name", TRUTHS)
def test_one_worker_has_speedup_1_whatever_the_parameters(name, batch_scope):
    one = law_named(name, batch_scope)
    start = np.array([bounds[1] for bounds in one.bounds.values()])
    assert one.speedup(np.array([1.0]), start)[0] == pytest.approx(1)


def test_the_universal_law_is_karp_and_flatts_serial_fraction_growing_in_a_line():
    workers = np.array(COUNTS)
    serial_fractions = (1 / truth(UNIVERSAL, COUNTS) - 1 / workers) / (1 - 1 / workers)
    contention, coherence = TRUTHS[UNIVERSAL]
    assert serial_fractions == pytest.approx(contention + coherence * workers)
