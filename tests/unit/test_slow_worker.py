"""Who the others wait for, from the phases of simulated steps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from results_helpers import arm_of

from dpexp.analysis.slow_worker import MIN_STEPS, find_slow_worker
from dpexp.phases import USEFUL
from dpexp.results.schema import Arm

USUAL = {"data": 0.3e-3, "compute": 2e-3, "update": 0.2e-3}
BURST = 25  # steps, for which a core keeps its speed


def useful(random, workers: int = 2, steps: int = 60) -> dict[str, np.ndarray]:
    """The seconds of work (steps, workers) by phase: some steps take much longer, and cores are slow for some time."""
    bursts = random.choice([1.0, 1.3], (1 + steps // BURST, workers), p=[0.7, 0.3])
    speed = np.repeat(bursts, BURST, 0)[:steps]
    return {
        phase: seconds * speed * np.exp(0.05 * random.standard_t(2, (steps, workers)).clip(-20, 60))
        for phase, seconds in USUAL.items()
    }


def arm(work: dict[str, np.ndarray], separates_waiting: bool = True, later: np.ndarray | float = 0.0) -> Arm:
    """An arm of these steps, in which all wait for the last one before they exchange, which takes a millisecond.

    Some come `later` than their work takes.
    """
    arrivals = sum(work.values()) + later
    wait = arrivals.max(1, keepdims=True) - arrivals
    rest = {"wait": wait, "communicate": 1e-3 + 0 * wait} if separates_waiting else {"communicate": wait + 1e-3}
    phases = {name: values.tolist() for name, values in (work | rest).items()}
    return replace(arm_of([[1e-3]], processes=arrivals.shape[1]), phases=phases)


def delayed(work, rank: int, phase: str, seconds: float = 3e-3, share: float = 1.0):
    """The same work, but that a rank takes longer in a share of the steps."""
    longer = np.zeros_like(work[phase])
    longer[: round(share * len(longer)), rank] = seconds
    return work | {phase: work[phase] + np.random.default_rng(0).permutation(longer)}


@pytest.mark.parametrize("separates_waiting", [True, False])
@pytest.mark.parametrize(("workers", "rank"), [(2, 0), (2, 1), (4, 2), (8, 7)])
@pytest.mark.parametrize("phase", USEFUL)
def test_a_delay_is_named_with_its_rank_its_phase_and_its_size(phase, workers, rank, separates_waiting):
    random = np.random.default_rng(0)
    for _ in range(20):
        blocks = [arm(delayed(useful(random, workers), rank, phase), separates_waiting) for _ in range(2)]
        found = find_slow_worker(blocks, [])
        assert (found["slow_rank"], found["slow_phase"]) == (rank, phase)
        assert found["slow_seconds"] == pytest.approx(3e-3, rel=0.2)
        assert found["slow_share"] > 0.85


@pytest.mark.parametrize("is_delayed", [True, False])
def test_a_slow_worker_on_a_shared_core_may_be_last_in_half_of_the_steps(is_delayed):
    random = np.random.default_rng(0)
    named = []
    for _ in range(20):
        works = [useful(random, 4) for _ in range(2)]
        blocks = [
            arm(delayed(work, 2, "data") if is_delayed else work, False, random.uniform(0, 9e-3, (60, 4)))
            for work in works
        ]
        found = find_slow_worker(blocks, [])
        named.append((found.get("slow_rank"), found.get("slow_phase")))
        assert found.get("slow_share", 0.5) == pytest.approx(0.5, abs=0.2)
    assert named.count((2, "data") if is_delayed else (None, None)) >= 19


def test_the_share_of_the_steps_is_reported():
    random = np.random.default_rng(0)
    blocks = [arm(delayed(useful(random, steps=200), 1, "compute", share=0.8)) for _ in range(2)]
    assert find_slow_worker(blocks, [])["slow_share"] == pytest.approx(0.8, abs=0.08)


@pytest.mark.parametrize(("workers", "steps", "runs"), [(2, 60, 400), (2, 10, 200), (4, 20, 200)])
def test_of_trainings_without_a_delay_hardly_any_names_a_worker(workers, steps, runs):
    random = np.random.default_rng(0)
    named = 0
    for _ in range(runs):
        found = find_slow_worker([arm(useful(random, workers, steps)) for _ in range(2)], [arm(useful(random, 1))])
        named += "slow_rank" in found
    assert named < 0.05 * runs


def test_a_core_that_is_slow_in_all_phases_names_no_slow_worker():
    random = np.random.default_rng(0)
    work = useful(random)
    for values in work.values():
        values[:, 1] *= 1.4
    assert find_slow_worker([arm(work)], []) == {}


def test_more_samples_take_longer_in_data_and_compute_but_not_in_update():
    random = np.random.default_rng(0)
    work = useful(random, steps=200)
    for phase in ("data", "compute"):
        work[phase][:, 1] *= 1.6
    found = find_slow_worker([arm(work)], [])
    assert (found["slow_rank"], found["slow_phase"]) == (1, "compute")


def test_who_is_slow_in_one_start_only_is_not_named():
    random = np.random.default_rng(0)
    blocks = [arm(delayed(useful(random, steps=200), 1, "data")), arm(useful(random, steps=60))]
    assert find_slow_worker(blocks, []) == {}


def test_work_that_is_done_while_others_are_later_still_delays_no_other():
    """As a rank's logging, while all others wait for the data of another one."""
    random = np.random.default_rng(0)
    work = delayed(delayed(useful(random), 0, "update", 1e-3), 1, "data", 4e-3)
    assert find_slow_worker([arm(work)], [])["slow_rank"] == 1


def test_ranks_that_update_for_others_do_not_delay_them_if_several_do():
    """Of ranks that share a core, the last one exchanges and updates."""
    work = useful(np.random.default_rng(0), 4)
    work["update"][:, :2] = 0.0
    assert find_slow_worker([arm(work)], []) == {}


@pytest.mark.parametrize(("differing", "phase"), [(True, "compute"), (False, None)])
def test_different_work_of_samples_is_recognized(differing, phase):
    """If that of one process doesn't, something else slows the workers down."""
    random = np.random.default_rng(0)
    work, alone = useful(random), useful(random, 1)
    work["compute"] += random.uniform(0, 6e-3, work["compute"].shape)
    if differing:
        alone["compute"] += random.uniform(0, 6e-3, alone["compute"].shape)
    found = find_slow_worker([arm(work)], [arm(alone)])
    assert found.get("slow_phase") == phase
    assert "slow_rank" not in found


def test_a_slow_core_is_not_taken_for_different_samples():
    """Nor of one process: all of its phases change from step to step alike."""
    random = np.random.default_rng(0)
    works = [useful(random), useful(random, 1)]
    for work in works:
        slowed = random.uniform(1, 3, work["update"].shape)
        for phase in USEFUL:
            work[phase] *= slowed
    assert find_slow_worker([arm(works[0])], [arm(works[1])]) == {}


def test_of_a_few_steps_no_worker_is_named():
    random = np.random.default_rng(0)
    few = delayed(useful(random, steps=MIN_STEPS - 1), 1, "data")
    assert find_slow_worker([arm(few)], []) == {}


def test_one_process_waits_for_no_other():
    random = np.random.default_rng(0)
    assert find_slow_worker([arm(useful(random, 1)), arm_of([[1e-3]], processes=2)], []) == {}
