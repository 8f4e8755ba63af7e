"""Laws of scaling, on simulated curves: recovered, chosen, and refused where measurements can't carry them."""

from __future__ import annotations

import numpy as np
import pytest

from dpexp.analysis.efficiency import PhaseTimes
from dpexp.analysis.intervals import Estimate
from dpexp.analysis.row import Row
from dpexp.decision.contest import Scaling, contest
from dpexp.decision.laws import Law, laws, serial_fraction

COUNTS = (2, 4, 8, 16, 32)
TRUTHS = {
    "Amdahl's law": [0.04],
    "Gustafson's law": [0.12],
    "the Universal Scalability Law": [0.03, 0.002],
    "the goodput model": [0.2, 0.03, 2.0],
    "the alpha-beta model": [1.05, 0.005, 0.1],
}


def law(name, batch_scope="per_worker"):
    return next(one for one in laws(batch_scope) if one.name == name)


def rows(curve: Law, parameters, counts=COUNTS, noise=0.01, seed=0, **changes):
    """Speedups that follow a law, each with noise, and intervals that know how much."""
    generator = np.random.default_rng(seed)
    workers = np.array(counts, dtype=float)
    speedups = curve.speedup(workers, np.array(parameters)) * np.exp(generator.normal(0, noise, len(counts)))
    shares = np.full(len(counts), np.nan)
    if curve.exchange_share is not None:
        shares = curve.exchange_share(workers, np.array(parameters))
    half = np.exp(1.96 * noise)
    made = []
    for count, speedup, share in zip(counts, speedups, shares, strict=True):
        phases = PhaseTimes(0.0, 1 - share, 0.0, share, 0.0)
        settings = {"oversubscribed": False, "batch_scope": "per_worker", "phases": phases} | changes
        made.append(Row("ok", workers=count, speedup=Estimate(speedup, speedup / half, speedup * half), **settings))
    return made


@pytest.mark.parametrize("name", TRUTHS)
def test_every_law_finds_its_parameters_again(name):
    one, truth = law(name), TRUTHS[name]
    found = contest(rows(one, truth, (2, 3, 4, 6, 8, 12, 16, 24, 32), noise=0.001))
    assert name in [kept.name for kept in found.laws]
    parameters = found.parameters[[kept.name for kept in found.laws].index(name)]
    assert parameters == pytest.approx(truth, rel=0.15)


@pytest.mark.parametrize("name", ["Amdahl's law", "Gustafson's law", "the Universal Scalability Law"])
def test_the_law_that_made_the_curve_is_chosen(name):
    assert contest(rows(law(name), TRUTHS[name], noise=0.002)).law.name == name


@pytest.mark.slow
@pytest.mark.parametrize("name", TRUTHS)
def test_bands_hold_the_true_speedup_of_twice_the_workers(name):
    """In at least 90 % of simulated sweeps."""
    one, held, tries = law(name), 0, 30
    truth = one.speedup(np.array([64.0]), np.array(TRUTHS[name]))[0]
    for seed in range(tries):
        found = contest(rows(one, TRUTHS[name], noise=0.02, seed=seed))
        assert isinstance(found, Scaling)
        _, low, high = found.curve([64])[:, 0]
        held += low <= truth <= high
    assert held >= 0.9 * tries


@pytest.mark.slow
def test_intervals_hold_the_true_parameters():
    """In at least 90 % of simulated sweeps."""
    one, held, tries = law("the Universal Scalability Law"), np.zeros(2), 40
    for seed in range(tries):
        found = contest(rows(one, TRUTHS[one.name], noise=0.02, seed=seed))
        for kept, draws in zip(found.laws, found.draws, strict=True):
            low, high = np.percentile(draws, [2.5, 97.5], axis=0)
            held += (low <= TRUTHS[one.name]) & (TRUTHS[one.name] <= high) if kept.name == one.name else 0
    assert (held >= 0.9 * tries).all()


def test_worker_counts_beyond_the_cores_do_not_count():
    measured = rows(law("Amdahl's law"), [0.04], (2,)) + rows(law("Amdahl's law"), [0.3], (4, 8), oversubscribed=True)
    assert contest(measured) == (
        "no law of scaling is fitted: only 1 and 2 workers were measured on enough cores and with an interval, and at "
        "least 4 counts are needed"
    )


def test_a_curve_that_no_law_predicts_is_refused():
    measured = rows(law("Amdahl's law"), [0.04])
    measured[2] = Row(**(vars(measured[2]) | {"speedup": Estimate(2.0, 1.98, 2.02)}))  # 8 workers: a slow node?
    refusal = contest(measured)
    assert isinstance(refusal, str)
    assert "misses held-out worker counts by" in refusal


def test_the_simplest_law_that_predicts_as_well_is_chosen():
    """Amdahl's law is the Universal Scalability Law without coherence."""
    found = contest(rows(law("Amdahl's law"), [0.05], noise=0.02, seed=3))
    assert len(found.law.bounds) == 1


@pytest.mark.parametrize("batch_scope", ["per_worker", "global"])
@pytest.mark.parametrize("name", TRUTHS)
def test_one_worker_has_speedup_1_whatever_the_parameters(name, batch_scope):
    one = law(name, batch_scope)
    start = np.array([bounds[1] for bounds in one.bounds.values()])
    assert one.speedup(np.array([1.0]), start)[0] == pytest.approx(1)


def test_the_universal_law_is_a_serial_fraction_that_grows_in_a_line():
    one = law("the Universal Scalability Law")
    for workers in COUNTS:
        speedup = one.speedup(np.array([float(workers)]), np.array([0.03, 0.002]))[0]
        assert serial_fraction(workers, speedup) == pytest.approx(0.03 + 0.002 * workers)
