"""What the blocks say beyond time and speedup, in the table and in words."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from basics import composed
from results_helpers import (
    MACHINE,
    QUIET,
    arm,
    changed,
    in_bursts,
    result,
    training,
    with_phases,
    write_sweep,
)

from dpexp.analysis.table import aggregate
from dpexp.config.job import BASELINE, CANDIDATE, SHARED_MEMORY
from dpexp.errors import format_number
from dpexp.report.answer import answer, details
from dpexp.report.sentences import reasons, targets, warning_lines
from dpexp.report.text_table import OVERALL, columns_of, footnotes

TWO = ["workers=2", "data.size=5000", "epochs=4"]


def phases(compute, wait, communicate, data=0.1, update=0.1):
    return {"data": data, "compute": compute, "wait": wait, "communicate": communicate, "update": update}


def explained(block):
    own, alone = block.arms[CANDIDATE], block.arms[BASELINE]
    return changed(
        block,
        candidate=with_phases(own, phases(0.5, 0.2, 0.1), phases(0.7, 0.0, 0.1)),
        baseline=with_phases(alone, phases(1.0, 0.0, 0.0)),
    )


def summary(tmp_path, *overrides, seconds=(1.0, 1.0, 1.0), baseline=(1.2, 1.2, 1.2), bursts=(), **changes):
    one = result(*TWO, *overrides, seconds=list(seconds), baseline=list(baseline), **changes)
    for name in bursts:
        one = replace(one, blocks=in_bursts(one.blocks, name))
    return aggregate([write_sweep(tmp_path, one)])


def words(headline):
    """Without the number and its interval."""
    return [word for word in headline.split() if not re.fullmatch(r"\(?[\d.]{4}\)?|to", word)]


def test_the_answer_opens_with_what_to_do_and_one_number(tmp_path):
    headline, cost, *_ = answer(summary(tmp_path))
    assert headline == "Use 2 workers: 1.20 times (1.18 to 1.22) the best single process"
    assert cost == (
        "With 2 workers, test accuracy is 10.0 points lower than in one process: 80.0 % after 160 updates, "
        "against 90.0 % after 316."
    )
    assert len(words(headline)) <= 12


def test_the_overall_speedup_decides_and_the_undisturbed_one_is_shown(tmp_path):
    found = summary(tmp_path, bursts=[CANDIDATE])
    assert "2 workers reach 0.99 times (" in answer(found)[0]
    (said,) = [line for line in warning_lines(found) if "slowed down 21 % of the steps" in line]
    assert re.search(r": undisturbed, the speedup is 1\.20 \(.*\); with all time counted, it is 0\.99 \(", said)


@pytest.mark.parametrize(
    ("value", "text"), [(0.0123, "0.0123"), (6.404, "6.4"), (99.97, "100"), (123.4, "123"), (12345.6, "12,346")]
)
def test_a_number_has_three_digits_and_no_exponent(value, text):
    assert format_number(value) == text


def test_nothing_is_advised_where_neither_is_shown_to_be_faster(tmp_path):
    headline, *_ = answer(summary(tmp_path, bursts=[CANDIDATE]))
    assert headline.startswith("No clear gain: ")
    assert headline.endswith(" the best single process")
    assert len(words(headline)) <= 12


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0.5, "training is 2.00 times (1.97 to 2.03) as fast (measured): use strategy.exchange=shared_memory."),
        (1.0, "training is 1.00 times (0.99 to 1.01) as fast (no clear gain)."),
        (1.5, "training is 0.67 times (0.66 to 0.68) as fast."),
    ],
)
def test_what_shared_memory_brings_is_reported_where_it_was_measured(tmp_path, seconds, told):
    def tried(block):
        return changed(block, **{SHARED_MEMORY: arm(composed(*TWO), seconds)})

    *_, last = answer(summary(tmp_path, "strategy=ddp", change=tried))
    assert last == f"With gradients exchanged in shared memory instead of over gloo, {told}"


def test_what_would_help_is_the_largest_loss(tmp_path):
    *_, last = answer(summary(tmp_path, change=explained))
    assert last == (
        "Largest loss of time: 25 % to slower computation in every worker; workers share cores, caches and memory "
        "bandwidth."
    )


def test_time_lost_to_other_programs_may_be_the_largest_loss(tmp_path):
    found = summary(tmp_path, change=explained)
    (row,) = found.measured
    overall = {"overall_speedup": row.speedup, "overall_best_sequential_speedup": row.best_sequential_speedup}
    slowed = replace(row, **{name: estimate.scaled(0.6) for name, estimate in overall.items()})
    *_, last = answer(replace(found, rows=[slowed]))
    assert last.startswith("Largest loss of time: 40 % to other programs or virtual machines; stop them, or ")


def test_where_waiting_is_not_separated_it_is_one_loss_with_exchanging(tmp_path):
    def change(block):
        own, alone = ({"data": 0.1, "compute": 0.5, "communicate": wait, "update": 0.1} for wait in (0.3, 0.0))
        candidate = with_phases(block.arms[CANDIDATE], own, own)
        return changed(block, candidate=candidate, baseline=with_phases(block.arms[BASELINE], alone))

    *_, last = answer(summary(tmp_path, "strategy=ddp", baseline=(2.0, 2.0, 2.0), change=change))
    assert last.startswith("Largest loss of time: 30 % to exchanging gradients, or waiting; larger batches ")


def test_an_accuracy_that_no_training_measured_is_reported_as_unknown(tmp_path):
    found = summary(tmp_path, trainings={})
    assert answer(found)[1] == "Accuracy: not measured; set measurement.whole_trainings=always to measure it."
    assert columns_of(found)[1]["accuracy"] == ("not trained",)
    script = ["script.command='x {workers}'", "data.size=5000"]
    one = result(*script, "workers=2", seconds=[1, 1], baseline=[1.5, 1.5], trainings={})
    found = aggregate([write_sweep(tmp_path / "script", one)])
    assert not any("ccuracy" in line for line in answer(found))
    assert "accuracy" not in columns_of(found)[1]


def test_both_speedups_are_in_the_table_where_they_differ(tmp_path):
    quiet = summary(tmp_path / "quiet")
    heads = columns_of(quiet)[1]
    assert "overall speedup" not in heads
    assert not any("disturbed steps" in note for note in footnotes(quiet, list(heads)))
    found = summary(tmp_path / "restless", bursts=[CANDIDATE])
    _, columns = columns_of(found)
    assert columns["speedup"][0].startswith("1.20 (")
    assert columns["overall speedup"][0].startswith("0.99 (")
    assert any(note.startswith("overall speedup: counts all time, ") for note in footnotes(found, list(columns)))


def test_speedups_that_count_all_time_are_marked_among_undisturbed_ones(tmp_path):
    one, other = (result(*TWO, f"data.size={size}", seconds=[1.0] * 3, baseline=[1.2] * 3) for size in (5000, 10000))
    found = aggregate([write_sweep(tmp_path, one, replace(other, blocks=in_bursts(other.blocks, CANDIDATE)))])
    _, columns = columns_of(found)
    assert [cell.endswith(OVERALL) for cell in columns["speedup"]] == [True, False]
    assert not any(cell.endswith(OVERALL) for cell in columns["overall speedup"])


def test_without_several_workers_the_answer_is_what_a_training_takes(tmp_path):
    one = result("workers=1", "measurement.baseline=none", seconds=[2, 2], baseline=None)
    (line,) = answer(aggregate([write_sweep(tmp_path, one)]))
    assert re.fullmatch(r"1 worker: 2 \(1\.9\d to 2\.0\d\) seconds for 10,000 samples", line)


def test_of_several_series_the_largest_speedup_is_named(tmp_path):
    jobs = [
        result(*TWO, f"strategy={name}", seconds=[seconds, seconds], baseline=[2, 2])
        for name, seconds in (("sync_dp", 1.0), ("ddp", 1.25))
    ]
    found = aggregate([write_sweep(tmp_path, *jobs)])
    headline = answer(found)[0]
    assert headline.startswith("Largest speedup: strategy=sync_dp: 2 workers, 2.00 times (")
    assert len(words(headline)) <= 12


ARGUED = ["script.command='x {workers} {loaders}'", "data.size=5000", "workers=2"]


def argued(value, seconds, *overrides):
    words = [*ARGUED, f"script.arguments.loaders={value}", *overrides]
    return result(*words, seconds=[seconds, seconds], baseline=[1.5, 1.5], trainings={})


def test_argument_values_are_compared_over_the_same_process(tmp_path):
    same = "script.baseline_arguments.loaders=0"
    jobs = [argued(0, 1.2, same), argued(1, 1.25, same), argued(2, 1.0, same), argued(2, 1.3, same, "workers=1")]
    found = aggregate([write_sweep(tmp_path, *jobs)])
    headline, ranking, *_ = answer(found)
    start = "Use loaders=2 with 2 workers: 1.50 times (1.4"
    assert headline.startswith(start)
    assert headline.endswith(") the best single process with loaders=0")
    assert re.sub(r" \([^)]*\)", "", ranking) == (
        "Compared with the best single process with loaders=0: loaders=2 with 2 workers, 1.50 times; "
        "loaders=0 with 2 workers, 1.25 times; loaders=1 with 2 workers, 1.20 times; "
        "loaders=2 with 1 worker, 1.15 times."
    )
    assert "one process with 1 thread and loaders=0, " in details(found)[0]
    _, columns = columns_of(found)
    assert columns["configuration"] == ("loaders=0", "loaders=1", "loaders=2", "loaders=2")
    assert "over one process with loaders=0 and as many threads" in footnotes(found, list(columns))[1]


def test_it_is_reported_where_the_fastest_value_is_uncertain(tmp_path):
    same = "script.baseline_arguments.loaders=0"
    found = aggregate([write_sweep(tmp_path, argued(0, 1.002, same), argued(1, 1.0, same))])
    assert "The probability that loaders=1 with 2 workers is the fastest is only " in answer(found)[1]


def test_values_with_different_baselines_are_not_compared(tmp_path):
    found = aggregate([write_sweep(tmp_path, argued(0, 1.2), argued(2, 1.0))])
    assert answer(found)[0].startswith("Largest speedup: loaders=2: 2 workers, 1.50 times (")
    assert not any("Fastest" in line for line in details(found))


def split(workers, threads, seconds, baseline, best, best_threads):
    """A job whose best sequential process has other threads than a worker."""
    words = [f"workers={workers}", f"threads_per_worker={threads}", "data.size=5000"]
    own = composed(*words).baseline()
    arms = {"best_sequential": arm(own, best, threads=best_threads)}
    return result(*words, seconds=[seconds] * 3, baseline=[baseline] * 3, change=lambda block: changed(block, **arms))


def test_core_splits_are_compared_over_a_common_process(tmp_path):
    """On 4 cores: one process takes 8 s with 1 thread, 4 s with 2, and 3.6 s with 4."""
    jobs = [
        split(4, 1, 3.0, 8.0, 4.0, 2),
        split(2, 2, 2.5, 4.0, 3.6, 4),
        split(1, 4, 3.6, 3.6, 4.0, 2),
    ]
    found = aggregate([write_sweep(tmp_path, *jobs)])
    headline, ranking, *_ = answer(found)
    assert re.sub(r" \([^)]*\)", "", headline) == "Use 2 workers x 2 threads: 1.60 times the best single process"
    assert re.sub(r" \([^)]*\)", "", ranking) == (
        "Compared with the best single process: 2 workers x 2 threads, 1.60 times; 4 workers x 1 thread, 1.33 times; "
        "1 worker x 4 threads, 1.11 times."
    )
    assert {row.best_sequential_threads for row in found.measured} == {2}


def test_splits_without_a_process_in_common_are_not_compared(tmp_path):
    jobs = [split(4, 1, 3.0, 8.0, 4.0, 2), split(1, 4, 3.6, 3.6, 5.0, 3)]
    assert answer(aggregate([write_sweep(tmp_path, *jobs)]))[0].startswith("Largest speedup: ")


def test_the_efficiency_tree_is_in_the_table(tmp_path):
    row = summary(tmp_path, change=explained).table.iloc[0]
    assert row.parallel_efficiency == pytest.approx(1.6 / 2)
    assert row.load_balance == pytest.approx(1.6 / 1.8)
    assert row.communication_efficiency == pytest.approx(1.8 / 2)
    assert row.computation_scaling == pytest.approx(1.2 / 1.6)
    assert row.parallel_efficiency * row.computation_scaling == pytest.approx(row.efficiency)


def test_one_process_that_plays_all_workers_has_no_parallel_efficiency(tmp_path):
    def emulated(block):
        own, alone = block.arms[CANDIDATE], block.arms[BASELINE]
        alone = with_phases(alone, phases(1.0, 0.0, 0.0))
        return changed(block, candidate=with_phases(own, phases(1.0, 0.0, 0.1)), baseline=alone)

    found = summary(tmp_path, "strategy=emulated", change=emulated, seconds=(1.3, 1.3, 1.3))
    assert found.table.load_balance.isna().all()
    assert found.table.compute_seconds.iloc[0] == pytest.approx(1.0)
    assert reasons(found) == []


def test_the_greatest_loss_is_named(tmp_path):
    (line,) = reasons(summary(tmp_path, change=explained))
    assert "load balance 89 % x communication efficiency 90 % x computation scaling 75 %" in line
    assert "Largest loss of time: slower computation in every worker." in line
    assert "A step takes 6.4 ms (data 0.64, compute 3.8, " in line


def faster(block):
    """One process of two threads takes 0.8 s."""
    config = composed(*TWO)
    return changed(block, best_sequential=arm(config.baseline(), 0.8, threads=2))


def test_one_process_is_not_contrasted_with_workers_that_were_no_choice(tmp_path):
    """Four workers on two cores may be faster, but not surely."""
    two_cores, sizes = replace(MACHINE, usable_cores=2), TWO[1:]
    jobs = [
        result("workers=2", *sizes, seconds=[1, 20], baseline=[1, 1], machine=two_cores),
        result("workers=4", *sizes, seconds=[0.8, 0.8], baseline=[1, 1], machine=two_cores),
    ]
    headline, *_ = answer(aggregate([write_sweep(tmp_path, *jobs)]))
    assert "4 workers" not in headline


def test_the_best_sequential_process_may_be_what_to_use(tmp_path):
    found = summary(tmp_path, change=faster)
    row = found.rows[0]
    assert (row.best_sequential_threads, row.best_sequential_speedup.value) == (2, pytest.approx(0.8))
    headline = answer(found)[0]
    assert headline == "Use one process with 2 threads (2 workers: 0.80 times (0.79 to 0.81) its speed)"
    assert len(words(headline)) <= 12
    assert details(found)[0].startswith(
        "Fastest for 5,000 samples, with all time counted: one process with 2 threads, with a probability of more than "
        "99 %"
    )


def test_one_disturbed_block_does_not_decide_which_sequential_process_is_the_best(tmp_path):
    """It is the fastest in eight blocks, and twice as slow in the only block of another configuration."""
    sizes, own = TWO[1:], composed(*TWO).baseline()
    slow = result("workers=4", *sizes, seconds=[0.8], baseline=[1.0])
    slow = replace(slow, blocks=[changed(block, best_sequential=arm(own, 2.0, threads=2)) for block in slow.blocks])
    whole = result(*TWO, seconds=[0.5] * 8, baseline=[1.0] * 8, change=faster)
    found = aggregate([write_sweep(tmp_path, whole, slow)])
    assert [row.best_sequential_threads for row in found.measured] == [2, 2]


def test_what_more_workers_cost_a_script_is_said(tmp_path):
    script = ["script.command='x {workers}'", "data.size=5000", "workers=2"]
    one, same = (
        result(*script, f"batch.scope={scope}", seconds=[1, 1], baseline=[1.5, 1.5], trainings={})
        for scope in ("per_worker", "global")
    )
    lines = answer(aggregate([write_sweep(tmp_path / "1", one)]))
    assert lines[1] == (
        "With 2 workers, 5,000 samples are 40 updates, with one process 79; what a script learns is not measured."
    )
    assert not any("updates" in line for line in answer(aggregate([write_sweep(tmp_path / "2", same)])))


def test_among_series_that_can_not_be_compared_the_number_that_is_shown_decides(tmp_path):
    """The second is faster than its baseline, the first than the best process."""
    jobs = [
        result(*TWO, f"strategy={name}", seconds=[seconds] * 2, baseline=[base] * 2, change=change)
        for name, seconds, base, change in (
            (
                "sync_dp",
                1.0,
                1.5,
                lambda block: changed(block, best_sequential=arm(composed(*TWO).baseline(), 1.4, threads=2)),
            ),
            ("ddp", 1.0, 1.8, faster),
        )
    ]
    assert answer(aggregate([write_sweep(tmp_path, *jobs)]))[0].startswith(
        "Largest speedup: strategy=sync_dp: 2 workers"
    )


def test_in_weak_scaling_the_fastest_is_that_for_the_samples_of_a_worker(tmp_path):
    found = summary(tmp_path, "data.scope=per_worker")
    assert details(found)[0].startswith("Fastest for 5,000 samples per worker, ")


def test_a_script_with_a_baseline_of_its_own_is_no_self_comparison(tmp_path):
    words = ["workers=1", "script.command='t {workers}'", "data.size=5000"]
    others = [[], ["script.baseline_command='plain'"]]
    jobs = [result(*words, *own, seconds=[1, 1], baseline=[1.5, 1.5], trainings={}) for own in others]
    found = [aggregate([write_sweep(tmp_path / str(number), one)]).measured for number, one in enumerate(jobs)]
    assert [row.is_self_comparison for (row,) in found] == [True, False]
    assert answer(aggregate([tmp_path / "1"]))[0].startswith("Use 1 worker: 1.50 times")


def test_where_the_best_has_the_same_threads_both_speedups_are_equal(tmp_path):
    row = summary(tmp_path).rows[0]
    assert row.best_sequential_speedup == row.speedup


def test_a_measurement_that_did_not_look_for_the_best_does_not_claim_it(tmp_path):
    assert not summary(tmp_path, "measurement.best_sequential=false").rows[0].best_sequential_speedup.is_known


LEARNING = {
    CANDIDATE: [training(epoch_accuracies=[0.5, 0.8, 0.89, 0.91])],
    BASELINE: [training(epoch_accuracies=[0.6, 0.92, 0.93, 0.93])],
}


def test_time_to_a_target_splits_exactly_into_throughput_and_samples(tmp_path):
    found = summary(tmp_path, "target_accuracy=0.9", baseline=(1.6, 1.6, 1.6), trainings=LEARNING)
    row = found.table.iloc[0]
    assert (row.target_seconds, row.baseline_target_seconds) == (pytest.approx(1.0), pytest.approx(0.8))
    assert row.target_samples_ratio == pytest.approx(0.5)
    assert row.target_speedup == pytest.approx(row.target_throughput_ratio * row.target_samples_ratio)
    assert "90 % accuracy after 1.00 s, 0.80 times as fast as the baseline" in targets(found)[0]


def test_a_target_that_was_not_reached_is_reported(tmp_path):
    found = summary(tmp_path, "target_accuracy=0.95", trainings=LEARNING)
    assert "the median seed did not reach 95 % accuracy in 4 epochs; increase epochs." in targets(found)[0]


def test_seeds_that_differ_are_averaged(tmp_path):
    learned = {CANDIDATE: [training(accuracy=each, loss=each, seed=seed) for seed, each in enumerate((0.6, 0.8))]}
    row = summary(tmp_path, trainings=learned).rows[0]
    assert (row.test_accuracy, row.train_loss) == (pytest.approx(0.7), pytest.approx(0.7))


def busy(cores):
    return lambda block: replace(block, conditions=replace(QUIET, other_cores=cores))


def test_a_kind_of_warning_is_reported_once_for_its_worst_row(tmp_path):
    times = {"seconds": [1.0] * 3, "baseline": [1.2] * 3}
    jobs = [
        replace(job, blocks=[busy(cores)(block) for block in job.blocks])
        for cores, job in ((0.3, result(*TWO, "workers=1", **times)), (0.5, result(*TWO, **times)))
    ]
    found = warning_lines(aggregate([write_sweep(tmp_path, *jobs)]))
    (line,) = [line for line in found if line.startswith("other programs")]
    assert line == (
        "other programs used up to 0.5 of 2 cores (2 workers, 5,000 samples and 1 more row): stop them while measuring"
    )


def test_a_warning_about_the_only_row_does_not_name_it(tmp_path):
    assert "workers" not in warning_lines(summary(tmp_path, change=busy(0.5)))[0]


def test_what_more_workers_would_bring_is_projected_and_said_to_be(tmp_path):
    (line,) = [line for line in details(summary(tmp_path, change=explained)) if "not measured" in line]
    assert re.match(
        r"Projected, not measured: 8 workers on one host: [\d.]+ \([\d.]+ to [\d.]+\) times as fast as one process",
        line,
    )
    assert line.endswith("31 % of it due to exchanging within a host.")


def test_what_can_not_be_projected_is_not_reported(tmp_path):
    assert not any("rojected" in line for line in details(summary(tmp_path)))


def test_what_is_known_too_roughly_is_not_projected(tmp_path):
    found = summary(tmp_path, change=explained, seconds=(1.0, 0.2, 5.0))
    assert not any("rojected" in line for line in details(found))


def test_of_a_few_recorded_steps_no_loss_is_reported(tmp_path):
    def few(block):
        arms = explained(block).arms
        return changed(
            block,
            **{
                name: replace(arm, phases={phase: steps[:1] for phase, steps in arm.phases.items()})
                for name, arm in arms.items()
            },
        )

    found = summary(tmp_path, change=few)
    assert reasons(found) == []
    assert not any("Largest loss" in line for line in answer(found))


def test_where_a_script_sets_other_threads_both_numbers_are_shown(tmp_path):
    def halved(block):
        process = replace(block.arms[BASELINE].processes[0], threads=2)
        return changed(block, baseline=replace(block.arms[BASELINE], processes=[process]))

    notes = footnotes(summary(tmp_path, change=halved), ["speedup"])
    assert notes[0].startswith("speedup: over one process with 2 threads (a worker has 1)")


def test_the_phase_that_takes_longer_in_every_worker_is_named(tmp_path):
    def loading(block):
        alone = with_phases(block.arms[BASELINE], phases(1.0, 0.0, 0.0))
        slower = {**phases(1.0, 0.0, 0.0), "data": 1.5}
        return changed(block, candidate=with_phases(block.arms[CANDIDATE], slower, slower), baseline=alone)

    (line,) = reasons(summary(tmp_path, change=loading))
    assert "Largest loss of time: loading data, which takes longer in every worker." in line


def late(*names, hosts=("a", "a"), **longer):
    """Rank 1 takes longer in one phase, and the other waits; `names` are the phases that are told apart."""

    def change(block):
        first, second = (phases(1e-3, wait, 1e-4, data=1e-4, update=1e-4) for wait in (5e-4, 0.0))
        second = {name: seconds + longer.get(name, 0.0) for name, seconds in second.items()}
        if "wait" not in names:
            first["communicate"] += first.pop("wait")
            second["communicate"] += second.pop("wait")
        own = with_phases(block.arms[CANDIDATE], first, second)
        processes = [replace(one, host=host) for one, host in zip(own.processes, hosts, strict=True)]
        alone = with_phases(block.arms[BASELINE], phases(1e-3, 0.0, 0.0, data=1e-4, update=1e-4))
        return changed(block, candidate=replace(own, processes=processes), baseline=alone)

    return change


@pytest.mark.parametrize(
    ("longer", "said"),
    [
        (
            {"data": 5e-4},
            "takes 0.5 ms longer to load data in 100 % of the steps; look at its loader, and at what it does ",
        ),
        (
            {"compute": 5e-4},
            "takes 0.5 ms longer to compute in 100 % of the steps; give it less work, or check what else runs on its "
            "core.",
        ),
        ({"update": 5e-4}, "takes 0.5 ms longer to update in 100 % of the steps; check what only this worker does "),
    ],
)
def test_the_worker_that_the_others_wait_for_is_named(tmp_path, longer, said):
    found = summary(tmp_path, change=late("wait", **longer))
    *_, last = answer(found)
    assert last.startswith(f"Largest loss of time: 28 % to waiting for rank 1, which {said}")
    row = found.measured[0]
    assert (row.slow_rank, row.slow_host, row.slow_phase, row.slow_share) == (1, "", next(iter(longer)), 1.0)
    assert row.slow_seconds == pytest.approx(5e-4)


def test_of_several_hosts_that_of_the_slow_worker_is_named(tmp_path):
    *_, last = answer(summary(tmp_path, change=late("wait", hosts=("a", "b"), compute=5e-4)))
    assert "waiting for rank 1 on b, which takes" in last


def test_the_slow_worker_is_named_without_a_wait_phase(tmp_path):
    *_, last = answer(summary(tmp_path, "strategy=ddp", change=late(compute=5e-4)))
    assert " to waiting for rank 1, which takes " in last


def test_a_slow_worker_is_named_beside_a_larger_loss(tmp_path):
    (line,) = reasons(summary(tmp_path, change=explained))
    assert "Largest loss of time: slower computation in every worker. The others wait for rank 1, which takes " in line


def test_where_the_work_of_samples_differs_no_rank_is_named(tmp_path):
    def change(block):
        one, other = late("wait", compute=5e-4)(block), late("wait", compute=5e-4)(block)
        own, alone = one.arms[CANDIDATE], one.arms[BASELINE]
        swapped = {name: [step[:: (-1) ** at] for at, step in enumerate(steps)] for name, steps in own.phases.items()}
        alone_phases = alone.phases | {"compute": [[1e-3 + 5e-4 * (at % 2)] for at in range(len(alone.phases["data"]))]}
        return changed(other, candidate=replace(own, phases=swapped), baseline=replace(alone, phases=alone_phases))

    found = summary(tmp_path, baseline=(1.6, 1.6, 1.6), change=change)
    assert (found.measured[0].slow_rank, found.measured[0].slow_phase) == (None, "compute")
    *_, last = answer(found)
    assert "waiting for a different worker in each step, which takes" in last
    assert last.endswith("samples need different amounts of work: put similar ones into the same batch.")
