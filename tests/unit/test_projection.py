"""What more workers would do, from the parts of a measured step."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from results_helpers import changed, result, with_phases, write_sweep

from dpexp.analysis.decision.links import Link, ring
from dpexp.analysis.decision.projection import (
    BANDWIDTH,
    LATENCY,
    LOCAL,
    SLOWER,
    WAIT,
    Cluster,
    StepModel,
    line,
    measure_next,
    worst_error,
)
from dpexp.analysis.intervals import Estimate
from dpexp.analysis.table import aggregate
from dpexp.analysis.table_row import Row
from dpexp.project import main
from dpexp.results.phases import PHASES

LINK = Link.parse("1Gbit/s,1ms")
STEADY = ((1.0, 100),)
HOSTS = ("--workers-per-host", "2", "--gradient-mb", "1", "--link")


def row(workers, step, exchange=0.0, wait=0.0, steps=STEADY, batch_scope="per_worker", **changes):
    """A row of 100 updates: `step`, `exchange` and `wait` are seconds of a step; one process takes 1 s."""
    own = step - exchange - wait
    seconds = (0.0, own, wait, exchange, 0.0)
    phases = {phase: 100 * workers * each for phase, each in zip(PHASES, seconds, strict=True)}
    speedup = (workers if batch_scope == "per_worker" else 1) / step
    computed = tuple(seconds for seconds, count in steps for _ in range(count))
    settings = {
        "workers": workers,
        "batch_scope": batch_scope,
        "local_batch_size": 64 if batch_scope == "per_worker" else 64 // workers,
        "global_batch_size": 64 * (workers if batch_scope == "per_worker" else 1),
        "epochs": 1,
        "data_size": 6400 * (workers if batch_scope == "per_worker" else 1),
        "configured_size": 6400,
        "baseline_seconds": 100.0,
        "seconds": Estimate(100 * step, 99 * step, 101 * step),
        "speedup": Estimate(speedup, speedup / 1.01, speedup * 1.01),
        "phases": phases,
        "baseline_phases": {"data": 0.0, "compute": 100.0, "update": 0.0},
        "baseline_compute": computed,
        "disturbed_share": 0.0,
        "oversubscribed": False,
    }
    return Row("ok", **(settings | changes))


def test_a_measured_count_is_projected_to_what_was_measured():
    found = StepModel([row(1, 1.0), row(2, 1.1, exchange=0.1)]).project(2, Cluster())
    assert found.speedup.value == pytest.approx(2 / 1.1)


def test_from_one_exchange_anything_from_constant_to_growing_with_the_others_is_allowed():
    found = StepModel([row(1, 1.0), row(2, 1.1, exchange=0.1)]).project(8, Cluster())
    assert found.speedup.high == pytest.approx(8 / 1.1 * 1.01)
    assert found.speedup.low == pytest.approx(8 / 1.7 / 1.01)
    assert found.bottleneck == LOCAL


def test_from_several_exchanges_their_line_is_taken():
    rows = [row(1, 1.0), row(2, 1.1, exchange=0.1), row(4, 1.2, exchange=0.2)]
    assert StepModel(rows).project(8, Cluster()).speedup.value == pytest.approx(8 / 1.4)


def test_stragglers_come_from_the_distribution_of_computation_times():
    """Of steps that take 1 s or, disturbed, 1.5 s, the slowest of many takes 1.5 s, where all steps count."""
    steps = ((1.0, 70), (1.5, 30))
    disturbed = {"steps": steps, "disturbed_share": 0.3}
    model = StepModel([row(1, 1.0, **disturbed), row(2, 1.0, **disturbed)])
    found = model.project(64, Cluster())
    assert found.speedup.high == pytest.approx(64 * 1.01)
    assert found.speedup.low == pytest.approx(64 / 1.5 / 1.01)
    assert found.bottleneck == WAIT


def test_a_global_batch_leaves_each_worker_less_to_do():
    rows = [
        row(1, 1.0, batch_scope="global"),
        row(2, 0.6, batch_scope="global"),
        row(4, 0.4, batch_scope="global"),
    ]  # 0.2 s + 0.8 s / workers
    assert StepModel(rows).project(8, Cluster()).speedup.value == pytest.approx(1 / 0.3)


def test_hosts_exchange_over_the_link():
    found = StepModel([row(1, 1.0)]).project(4, Cluster(1, LINK, gradient_bytes=1.25e8))
    assert found.hosts == 4
    assert found.parts[LATENCY] == pytest.approx(12e-3)
    assert found.parts[BANDWIDTH] == pytest.approx(1.5)  # 2 x 3/4 of a gradient that takes a second
    assert found.speedup.value == pytest.approx(4 / 2.512)
    assert found.bottleneck == BANDWIDTH


def test_overlap_hides_the_exchange_between_hosts():
    cluster = Cluster(1, LINK, gradient_bytes=1.25e8, overlap=1.0)
    assert StepModel([row(1, 1.0)]).project(4, cluster).speedup.value == pytest.approx(4)


def test_what_a_measured_count_waited_beyond_the_model_is_carried_on():
    model = StepModel([row(1, 1.0), row(2, 1.1, wait=0.1)])  # as for barriers: all steps compute alike
    assert model.project(2, Cluster()).speedup.value == pytest.approx(2 / 1.1)
    assert model.project(8, Cluster()).speedup.value == pytest.approx(8 / 1.1)


def test_computation_that_gets_slower_beside_others_is_a_loss_of_its_own():
    assert StepModel([row(1, 1.0), row(2, 1.5)]).project(8, Cluster()).bottleneck == SLOWER


def test_a_process_that_plays_all_workers_tells_nothing_of_several():
    with pytest.raises(ValueError, match="no row "):
        StepModel([row(2, 2.0, strategy="emulated")])


def test_without_a_baseline_nothing_is_projected():
    with pytest.raises(ValueError, match="no row "):
        StepModel([row(2, 1.0, baseline_phases={})])


def test_what_was_not_measured_is_not_projected():
    with pytest.raises(ValueError, match="no row has the time of an exchange within a host"):
        StepModel([row(1, 1.0)]).project(2, Cluster())


@pytest.mark.parametrize("rows", [[], [row(2, 2.0, oversubscribed=True)], [row(2, 1.0, phases={})]])
def test_without_the_parts_of_a_step_there_is_no_model(rows):
    with pytest.raises(ValueError, match="no row "):
        StepModel(rows)


def test_a_projection_is_checked_against_measured_counts_that_it_has_not_seen():
    rows = [row(1, 1.0), row(2, 1.1, exchange=0.1), row(3, 1.3, exchange=0.3)]
    checked = StepModel(rows).check()
    assert checked == {3: (pytest.approx(3 / math.sqrt(1.1 * 1.2)), pytest.approx(3 / 1.3))}
    assert worst_error(checked) == pytest.approx(math.log(1.3 / math.sqrt(1.1 * 1.2)))


def test_the_error_of_the_check_widens_the_band():
    model = StepModel([row(1, 1.0), row(2, 1.1, exchange=0.1)])
    surer, less_sure = model.project(4, Cluster()), model.project(4, Cluster(), error=0.1)
    assert less_sure.speedup.low == pytest.approx(surer.speedup.low * math.exp(-0.1))
    assert less_sure.speedup.high == pytest.approx(surer.speedup.high * math.exp(0.1))


def test_the_best_tradeoff_is_where_speedup_times_efficiency_is_highest(example, capsys):
    assert main([example, "--workers", "2,4,8,64", *HOSTS, "1Gbit/s,1ms"]) == 0
    found = [modelled(example)[0].project(workers, hosts("1Gbit/s,1ms")) for workers in (2, 4, 8, 64)]
    best = max(found, key=lambda one: one.speedup.value**2 / one.workers)
    assert f"speedup x efficiency is highest at {best.workers} workers" in capsys.readouterr().out


def test_a_measurement_that_narrows_the_band_most_is_named_with_the_band_that_it_leaves():
    rows = [row(1, 1.0), row(2, 1.1, exchange=0.1)]
    model = StepModel(rows)
    asked = model.project(8, Cluster())
    (sentence,) = measure_next(model, asked, Cluster(), cores=4)
    at_four = model.project(4, Cluster())
    bands = {}
    for count in (3, 4):  # measured where the projection expects them
        expected = model.project(count, Cluster())
        like = row(count, expected.step_seconds, exchange=expected.parts[LOCAL], speedup=expected.speedup)
        with_it = StepModel([*rows, like])
        bands[count] = with_it.project(8, Cluster(), worst_error(with_it.check())).speedup
    assert at_four.parts[LOCAL] == pytest.approx(0.2)
    assert bands[4].high / bands[4].low < asked.speedup.high / asked.speedup.low
    assert sentence == (
        f"measure workers=4 next: the band at 8 workers would narrow from {asked.speedup.low:.3g}.."
        f"{asked.speedup.high:.3g} to about 5.66..5.77"
    )


def test_without_cores_for_another_count_a_bigger_machine_is_named():
    model = StepModel([row(1, 1.0), row(2, 1.1, exchange=0.1)])
    (sentence,) = measure_next(model, model.project(64, Cluster()), Cluster(), cores=2)
    assert sentence.startswith("on 4 cores, measure workers=1,2,4: the band at 64 workers would narrow from ")


def test_no_measurement_is_named_that_would_not_narrow_the_band():
    model = StepModel([row(1, 1.0), row(2, 1.1, exchange=0.1), row(4, 1.3, exchange=0.3)])
    assert measure_next(model, model.project(64, Cluster()), Cluster(), cores=8) == []
    alone = StepModel([row(1, 1.0)])
    assert measure_next(alone, alone.project(4, Cluster(1, LINK, 1e6)), Cluster(1, LINK, 1e6), cores=8) == []


def test_a_line_of_a_single_point_is_proportional():
    assert line({64: 0.5}, 256) == pytest.approx(2.0)


def test_every_message_around_a_ring_takes_the_receivers_notice_and_a_part_of_the_bytes():
    latency_seconds, bandwidth_seconds = ring(4, 1e8, LINK)  # 125 MB/s, 1 ms
    assert latency_seconds == pytest.approx(6 * 2e-3)
    assert bandwidth_seconds == pytest.approx(6 * 1e8 / 4 / 1.25e8)


def test_one_host_exchanges_with_no_other():
    assert sum(ring(1, 1e9, LINK)) == 0


@pytest.mark.parametrize("text", ["fast", "10Gbit/s", "0Gbit/s,1ms", "1Gbit/s,1.2.3ms", "10GB/s,1us"])
def test_a_link_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="link"):
        Link.parse(text)


def test_the_units_of_a_link():
    found = Link.parse("25 Gbit/s, 10us")
    assert (found.bytes_per_second, found.latency_seconds) == (pytest.approx(25e9 / 8), pytest.approx(1e-5))


def test_a_link_without_a_bandwidth_is_only_as_slow_as_its_latency():
    assert ring(4, 1e8, Link.parse(",1ms")) == (pytest.approx(6 * 2e-3), 0.0)


def exchanging_sweep(folder, *batches, scope="per_worker"):
    """A sweep of one and two workers, whose steps tell what they are made of: 1.1 s of work, in a batch of 64."""

    def at(batch, workers, seconds):
        work = {"data": 0.0, "compute": 1.0, "wait": 0.0, "communicate": 0.0, "update": 0.1}

        def explained(block):
            own, alone = block.arms["candidate"], block.arms["baseline"]
            phases = [work | {"communicate": 0.2}] * len(own.processes)
            return changed(block, candidate=with_phases(own, *phases), baseline=with_phases(alone, work))

        # In smaller batches an epoch has more steps, and each costs a quarter of that of 64.
        cost = 0.75 + 0.25 * 64 / batch
        own, alone = [9, *[seconds * cost] * 3], [9, *[2 * cost] * 3]
        settings = f"workers={workers}", f"batch.size={batch}", f"batch.scope={scope}", "price_per_hour=3.6"
        return result(*settings, seconds=own, baseline=alone, change=explained)

    jobs = [at(batch, workers, seconds) for batch in batches for workers, seconds in ((1, 2.0), (2, 1.2))]
    return str(write_sweep(folder, *jobs))


@pytest.fixture
def example(tmp_path):
    """Results of one and two workers, with one batch."""
    return exchanging_sweep(tmp_path / "example", 64)


@pytest.fixture
def few(monkeypatch):
    """Few worker counts are tried, to save time."""
    monkeypatch.setattr("dpexp.project.MOST_WORKERS", 150)
    return range(1, 151)


def hosts(link):
    return Cluster(2, Link.parse(link), gradient_bytes=1e6)


def modelled(folder):
    """The model of the results with a batch of 64, and the seconds of their sequential training."""
    rows = [row for row in aggregate([Path(folder)]).good if row.local_batch_size == 64]
    return StepModel(rows), rows[-1].baseline_seconds


def ends(projection):
    return projection.speedup.value, projection.speedup.low, projection.speedup.high


def solved(capsys, *arguments):
    """What the command answers: the sentence, the number, and the two ends."""
    assert main(list(arguments)) == 0
    first, sentence, *_ = capsys.readouterr().out.splitlines()
    assert first == "projected, not measured:"
    what, value, low, high = re.fullmatch(r"(.*): (\S+) \((\S+) to (\S+)\)(?:; more .*)?", sentence).groups()
    numbers = [math.inf if text == "none" else float(text.replace(",", "")) for text in (value, low, high)]
    assert numbers[1] <= numbers[0] <= numbers[2]
    return what, numbers


@pytest.mark.parametrize("link", [(), (*HOSTS, "1Gbit/s,100us")])
def test_the_most_workers_that_keep_an_efficiency_are_those_of_a_sweep(example, few, link, capsys):
    what, (value, low, high) = solved(capsys, example, "--efficiency", "0.7", *link)
    model, _ = modelled(example)
    sweep = [ends(model.project(count, hosts("1Gbit/s,100us") if link else Cluster())) for count in few]
    most = [max(count for count in few if sweep[count - 1][end] >= 0.7 * count) for end in range(3)]
    assert what == "most workers for an efficiency of 70 %"
    assert (value, low, high) == (most[0], most[1], most[2])


@pytest.mark.parametrize("link", [(), (*HOSTS, "1Gbit/s,100us")])
def test_the_fewest_workers_that_train_in_a_time_are_those_of_a_sweep(example, few, link, capsys):
    what, (value, low, high) = solved(capsys, example, "--seconds", "0.3", *link)
    model, alone = modelled(example)
    sweep = [ends(model.project(count, hosts("1Gbit/s,100us") if link else Cluster())) for count in few]
    fewest = [min((c for c in few if alone / sweep[c - 1][end] <= 0.3), default=math.inf) for end in range(3)]
    assert what == "fewest workers for a training in 0.3 s"
    assert (value, low, high) == (fewest[0], fewest[2], fewest[1])


def test_one_process_is_enough_for_the_time_that_it_takes(example, few, capsys):
    assert solved(capsys, example, "--seconds", "60") == ("fewest workers for a training in 60 s", [1, 1, 1])


@pytest.mark.parametrize(
    ("goal", "wanted"),
    [(("--efficiency", "0.6"), lambda alone: 0.6 * 8), (("--seconds", "0.4"), lambda alone: alone / 0.4)],
)
def test_the_least_bandwidth_is_where_a_sweep_crosses_the_goal(example, goal, wanted, capsys):
    what, (value, low, high) = solved(capsys, example, "--workers", "8", *goal, *HOSTS, ",50us")
    model, alone = modelled(example)
    assert what.startswith("least Gbit/s at this latency with 8 workers for ")
    for gbits, end in ((value, 0), (high, 1), (low, 2)):
        if gbits < math.inf:
            enough, little = (model.project(8, hosts(f"{gbits * share:.9f}Gbit/s,50us")) for share in (1.02, 0.98))
            assert ends(little)[end] < wanted(alone) <= ends(enough)[end]
        else:
            assert ends(model.project(8, hosts("900Gbit/s,50us")))[end] < wanted(alone)
    assert value < math.inf


def test_the_smallest_batch_is_where_a_sweep_crosses_the_efficiency(example, capsys):
    link = "10Gbit/s,50us"
    what, (value, low, high) = solved(capsys, example, "--workers", "8", "--efficiency", "0.85", *HOSTS, link)
    assert "proportional to it (only 64 is measured)" in what
    model, _ = modelled(example)
    for batch, end in ((value, 0), (high, 1), (low, 2)):
        enough, little = (model.project(8, hosts(link), work=batch * share / 64) for share in (1.02, 0.98))
        assert ends(little)[end] < 0.85 * 8 <= ends(enough)[end]


def test_the_work_of_a_batch_is_on_the_line_through_those_that_were_measured(tmp_path, capsys):
    """A quarter of the work at 64 is the same in each batch, so a batch of b has 0.25 + 0.75 b / 64 of it."""
    folder, link = exchanging_sweep(tmp_path, 64, 256), "10Gbit/s,50us"
    of_64 = next(row.series for row in aggregate([tmp_path]).good if row.local_batch_size == 64)
    what, (batch, *_) = solved(
        capsys, folder, "--series", of_64, "--workers", "8", "--efficiency", "0.85", *HOSTS, link
    )
    assert "on the line through 64 and 256" in what
    model, _ = modelled(folder)
    enough, little = (model.project(8, hosts(link), work=0.25 + 0.75 * batch * share / 64) for share in (1.02, 0.98))
    assert little.speedup.value < 0.85 * 8 <= enough.speedup.value


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--efficiency", "0.99"], "most workers for an efficiency of 99 %: none is enough; at best, 2 workers on one"),
        (["--seconds", "0.001"], "fewest workers for a training in 0.001 s: none is enough; at best, "),
        (
            ["--workers", "8", "--efficiency", "0.6", *HOSTS, ",1s"],
            "the latency alone is too much; at best, 8 workers on 4",
        ),
        (["--workers", "8", "--efficiency", "0.99", *HOSTS, ",0us"], "none is enough; at best, 8 workers on 4 hosts: "),
    ],
)
def test_a_goal_beyond_the_whole_interval_is_refused(example, few, arguments, message, capsys):
    assert main([example, *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_batch_that_workers_share_is_not_solved_for(tmp_path, capsys):
    folder = exchanging_sweep(tmp_path, 64, scope="global")
    assert main([folder, "--workers", "8", "--efficiency", "0.5"]) == 1
    assert "batch.scope=global: to solve for the batch, measure with" in capsys.readouterr().err


def test_a_folder_without_a_good_result_is_refused(tmp_path, capsys):
    broken = result("workers=2", seconds=[1.0], baseline=[1.0], status="failed", error="no luck")
    folder = write_sweep(tmp_path / "sweep", broken)
    assert main([str(folder), "--workers", "8"]) == 1
    assert "has no good result" in capsys.readouterr().err


def test_the_command_says_that_nothing_of_it_was_measured(example, capsys):
    assert main([example, "--workers", "8,64", "--link", "25Gbit/s,10us", "--workers-per-host", "2"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "projected, not measured:"
    assert lines[0].startswith("8 workers on 4 hosts: ")
    speedup, price = (float(re.search(rf"{about} ([\d.]+)", lines[0])[1]) for about in ("hosts:", "training:"))
    assert price == pytest.approx(4 * 0.001 * 2 / speedup, rel=0.01)  # four hosts, and 2 s of one process
    assert "; projected price of a training: " in lines[1]
    assert lines[1].startswith("64 workers on 32 hosts: ")
    assert "speedup x efficiency is highest at" in lines[2]
    assert lines[3].startswith("not checked: the measured worker counts (1, 2) can't be projected")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--link", "1Gbit/s,1ms"], "--link and --workers-per-host belong together"),
        (["--link", "1Gbit/s,1ms", "--workers-per-host", "0"], "--workers-per-host 0: it must be at least 1"),
        (["--overlap", "2"], "--overlap 2.0: it must be a share between 0 and 1"),
        (["--overlap", "0.5"], "--overlap and --gradient-mb describe the exchange between hosts: give --link, too"),
        (["--gradient-mb", "-5"], "--gradient-mb -5: it must be above 0"),
        (
            ["--link", ",1ms", "--workers-per-host", "2"],
            "give the bandwidth; or --efficiency or --seconds, to solve for it",
        ),
        (["--seconds", "3"], "--seconds: leave out exactly one of --workers and the bandwidth (--link ,10us)"),
        (["--efficiency", "80"], "--efficiency 80: it must be a share above 0, of at most 1"),
        (["--efficiency", "0"], "--efficiency 0: it must be a share above 0, of at most 1"),
        (["--seconds", "0", *HOSTS, ",1ms"], "--seconds 0: it must be above 0"),
        (["--efficiency", "0.5", "--seconds", "3"], "argument --seconds: not allowed with argument --efficiency"),
        (["--efficiency", "0.5", "--link", ",1ms", "--workers-per-host", "8"], "it needs workers on several hosts"),
        (["--efficiency", "0.5", *HOSTS, ",1ms", "--overlap", "1"], "it needs workers on several hosts, and an --over"),
        (["--series", "x"], "--series x: choose from none: the folder has a single series"),
    ],
)
def test_a_mistake_is_told_in_one_line(example, arguments, message, capsys):
    assert main([example, "--workers", "8", *arguments]) > 0
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_without_a_count_or_a_goal_the_choices_are_told(example, capsys):
    assert main([example]) > 0
    assert "give --workers; or --efficiency or --seconds, to solve for it" in capsys.readouterr().err


def test_results_that_do_not_tell_steps_are_refused(tmp_path, capsys):
    folder = write_sweep(tmp_path, result("workers=2", seconds=[9, 1, 1], baseline=[9, 2, 2]))
    assert main([str(folder), "--workers", "8"]) == 1
    assert "can't project: no row" in capsys.readouterr().err


@pytest.mark.parametrize("place", [1.0, 0.5, 8.0])
def test_a_line_through_a_single_point_begins_at_0(place):
    assert line({place: 3.0}, 2 * place) == pytest.approx(6.0)
