"""Each reason not to trust a measurement is told, with what to do; a quiet measurement has none."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
from results_helpers import MACHINE, QUIET, TURNS, changed, in_bursts, result, training, write_sweep

from dpexp.analysis.arm_statistics import ArmStatistics
from dpexp.analysis.ratio_estimate import compare
from dpexp.analysis.speedup import Speedup
from dpexp.analysis.table import aggregate
from dpexp.analysis.warnings import MIN_TURNS, find_warnings
from dpexp.config.job import BASELINE, CANDIDATE
from dpexp.report.answer import answer

CALM = ["workers=2", "batch.scope=global", "batch.size=128", "data.size=5000"]
SECONDS, BASES = [1.0, 1.01, 0.99, 1.0, 1.0], [1.8, 1.82, 1.78, 1.8, 1.8]


def seen(
    *overrides, seconds=SECONDS, baseline=BASES, machine=MACHINE, change=lambda block: block, bursts=(), **changes
):
    measured = result(*CALM, *overrides, seconds=seconds, baseline=baseline, change=change, **changes)
    blocks, config = measured.blocks, measured.config
    for name in bursts:
        blocks = in_bursts(blocks, name)
    found = compare([blocks], BASELINE, CANDIDATE)
    sides = [
        ArmStatistics(one, found.blocks, name, limit, measured.trainings.get(name, []), blocks)
        for one, name, limit in zip(
            (config, config.baseline()), (CANDIDATE, BASELINE), reversed(found.limits), strict=True
        )
    ]
    return find_warnings(replace(measured, environment=machine), Speedup(found, *sides))


def test_a_quiet_measurement_has_none():
    assert seen() == []


def busy(**conditions):
    return lambda block: replace(block, conditions=replace(QUIET, **conditions))


def short(block):
    """The same block of a single turn."""
    arms = {
        name: replace(own, turns=own.turns[:1], first_steps=own.first_steps[:1]) for name, own in block.arms.items()
    }
    return changed(block, **arms)


FOUND = {
    "other programs": (
        {"change": busy(other_cores=0.5)},
        "other programs used up to 0.5 of 2 cores: stop them while measuring",
    ),
    "stolen time": ({"change": busy(stolen_cores=0.3)}, "the hypervisor took up to 0.3 cores away"),
    "throttled": (
        {"change": busy(throttled_seconds=0.2)},
        "the cgroup's CPU quota held processes back for 1.0 s: use fewer workers, or raise the quota",
    ),
    "few turns": (
        {"change": short},
        "there was time for only 5 turns of each training: set measurement.max_seconds=24 or",
    ),
    "extrapolation": (
        {"trainings": {CANDIDATE: [training(1.3)]}},
        "a whole training (candidate) took 1.3 s, but its steps predict 1 s",
    ),
}


@pytest.mark.parametrize("kind", FOUND)
def test_what_was_seen_is_reported_with_what_to_do(kind):
    changes, text = FOUND[kind]
    (warning,) = [warning for warning in seen(**changes) if warning.kind == kind]
    assert text in str(warning)
    assert warning.severity >= 1


def test_the_most_severe_comes_first():
    found = seen(change=busy(other_cores=1.5, stolen_cores=0.3))
    assert [warning.kind for warning in found] == ["other programs", "stolen time"]
    assert [warning.severity for warning in found] == pytest.approx([15, 6])


def test_ranks_on_other_machines_do_not_oversubscribe_this_one():
    here = result("workers=4", "strategy=ddp", seconds=SECONDS, baseline=BASES)
    assert here.threads_on_host == 4
    block = here.blocks[0]
    candidate = block.arms[CANDIDATE]
    placed = [replace(process, host=f"host {rank // 2}") for rank, process in enumerate(candidate.processes)]
    elsewhere = changed(block, candidate=replace(candidate, processes=placed))
    assert replace(here, blocks=[elsewhere]).threads_on_host == 2


def test_a_precision_that_was_not_reached_is_reported():
    noisy = [1.0, 1.05, 0.95, 1.08, 0.93]
    (warning,) = [
        warning for warning in seen("measurement.precision=0.01", seconds=noisy) if warning.kind == "precision"
    ]
    assert re.match(r"the speedup is known only to within \d+\.\d %", warning.text)
    assert warning.advice == "increase measurement.max_seconds"
    assert "to within a factor of " in next(map(str, seen("measurement.precision=0.01", seconds=[1.0, 9.0, 0.2])))
    noticed = seen("measurement.precision=0.01", "measurement.max_seconds=9", seconds=noisy)
    assert "increase measurement.max_seconds (now 9)" in [warning.advice for warning in noticed]


def test_slow_bursts_that_moved_the_speedup_are_reported_with_both_numbers():
    (warning,) = [warning for warning in seen(bursts=[CANDIDATE]) if warning.kind == "disturbed"]
    assert warning.text == "other programs or virtual machines slowed down 21 % of the steps"
    assert re.match(
        r"undisturbed, the speedup is 1\.80 \(1\.7\d to 1\.8\d\); with all time counted, it is 1\.49 \(",
        warning.advice,
    )


def test_slow_bursts_are_reported_of_the_side_that_they_hit_more():
    (warning,) = [warning for warning in seen(bursts=[BASELINE]) if warning.kind == "disturbed"]
    assert warning.text == "other programs or virtual machines slowed down 21 % of the steps"


def test_no_disturbance_warning_if_the_speedup_is_unchanged():
    assert [warning.kind for warning in seen(bursts=[BASELINE, CANDIDATE])] == []


def test_in_a_container_the_hosts_other_programs_are_not_counted():
    assert seen(change=busy(other_cores=40.0), machine=replace(MACHINE, logical_cores=64)) == []


def test_no_warning_if_a_whole_training_took_the_predicted_time():
    assert seen(trainings={CANDIDATE: [training(1.08)], BASELINE: [training(1.7)]}) == []


def test_jobs_with_and_without_a_best_sequential_arm_are_pooled():
    """Where it has as many threads as the baseline, there is no arm of it."""
    one = result(*CALM, seconds=SECONDS, baseline=BASES)
    other = one.blocks
    blocks = [*one.blocks, *(changed(block, best_sequential=block.arms[BASELINE]) for block in other)]
    found = compare([blocks], BASELINE, CANDIDATE)
    side = ArmStatistics(one.config, blocks, CANDIDATE, math.inf, [], blocks)
    assert find_warnings(one, Speedup(found, side, side)) == []


def test_enough_turns_are_no_reason_for_doubt():
    assert TURNS > MIN_TURNS


def of_script(samples, exchanges=False, scope="per_worker"):
    """Two workers, and one process, whose model receives so many samples in a step."""

    def receiving(block):
        arms = {}
        for name, own in block.arms.items():
            process = replace(own.processes[0], samples=samples[name], exchanges=exchanges)
            arms[name] = replace(own, processes=[process] * len(own.processes))
        return changed(block, **arms)

    script = ["script.command='x {workers}'", "workers=2", f"batch.scope={scope}"]
    return result(*script, seconds=SECONDS, baseline=BASES, change=receiving, trainings={})


SAMPLES = {"halves": {CANDIDATE: 32, BASELINE: 64}, "the same": {CANDIDATE: 64, BASELINE: 64}}


@pytest.mark.parametrize(
    ("samples", "scope", "is_told"),
    [
        ("halves", "per_worker", True),
        ("halves", "global", False),
        ("the same", "per_worker", False),
        ("the same", "global", True),
    ],
)
def test_a_wrong_batch_scope_replaces_the_headline(tmp_path, samples, scope, is_told):
    found = aggregate([write_sweep(tmp_path, of_script(SAMPLES[samples], scope=scope))])
    other = {"per_worker": "global", "global": "per_worker"}[scope]
    assert any(f"set batch.scope={other}" in str(warning) for warning in found.measured[0].warnings) == is_told
    assert answer(found)[0].startswith("No speedup is known: in a step, the model receives") == is_told


def test_a_baseline_that_exchanges_gradients_alone_is_reported(tmp_path):
    found = aggregate([write_sweep(tmp_path, of_script(SAMPLES["the same"], exchanges=True))])
    warning = str(found.measured[0].warnings[0])
    assert "if the script also trains without it, set script.baseline_command to that command" in warning


def test_a_single_block_of_several_is_named():
    (warning,) = [warning for warning in seen(seconds=[1.0], baseline=[1.8]) if warning.kind == "few blocks"]
    assert warning.text.startswith("there was time for only 1 of 4 blocks")
    assert warning.advice == "set measurement.max_seconds=9 or more"


def test_a_process_that_differs_from_itself_is_named(tmp_path):
    jobs = [result("workers=1", "data.size=5000", seconds=[1.0] * 4, baseline=[base] * 4) for base in (1.003, 1.2)]
    kinds = [
        [warning.kind for warning in aggregate([write_sweep(tmp_path / str(number), one)]).measured[0].warnings]
        for number, one in enumerate(jobs)
    ]
    assert kinds == [[], ["A/A"]]


def test_a_batch_size_that_the_model_does_not_receive_is_named(tmp_path):
    kinds = []
    for number, samples in enumerate((64, 128)):
        one = of_script({CANDIDATE: samples, BASELINE: samples})
        kinds.append(
            [str(found) for found in aggregate([write_sweep(tmp_path / str(number), one)]).measured[0].warnings]
        )
    assert kinds[0] == []
    assert "the model receives 128 samples in each process, but batch.size stands for 64" in kinds[1][0]
