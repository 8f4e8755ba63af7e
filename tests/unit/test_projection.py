"""What more workers would do, from the parts of a measured step."""

from __future__ import annotations

import argparse
import math
from dataclasses import replace

import pytest
from results_helpers import changed, result, with_phases, write_sweep

from dpexp.analysis.decision.links import Link, ring_seconds
from dpexp.analysis.decision.projection import (
    BANDWIDTH,
    LATENCY,
    LOCAL,
    SLOWER,
    WAIT,
    Cluster,
    StepModel,
    fit_line,
    worst_error,
)
from dpexp.analysis.estimate import Estimate
from dpexp.analysis.table_row import Row
from dpexp.phases import PHASES
from dpexp.project import main

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
        "step_seconds": step,
        "baseline_step_seconds": 1.0,
        "baseline_compute": computed,
        "disturbed_share": 0.0,
        "oversubscribed": False,
    }
    return Row("ok", **(settings | changes))


def test_a_measured_count_is_projected_to_what_was_measured():
    found = StepModel([row(1, 1.0), row(2, 1.1, exchange=0.1)]).project(2, Cluster())
    assert found.speedup.value == pytest.approx(2 / 1.1)


def test_one_measured_exchange_gives_the_range_from_constant_to_proportional():
    found = StepModel([row(1, 1.0), row(2, 1.1, exchange=0.1)]).project(8, Cluster())
    assert found.speedup.high == pytest.approx(8 / 1.1 * 1.01)
    assert found.speedup.low == pytest.approx(8 / 1.7 / 1.01)
    assert found.bottleneck == LOCAL


def test_from_several_exchanges_their_line_is_taken():
    rows = [row(1, 1.0), row(2, 1.1, exchange=0.1), row(4, 1.2, exchange=0.2)]
    assert StepModel(rows).project(8, Cluster()).speedup.value == pytest.approx(8 / 1.4)


def test_the_slowest_worker_comes_from_the_distribution_of_computation_times():
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


def test_projections_are_checked_on_held_out_counts():
    rows = [row(1, 1.0), row(2, 1.1, exchange=0.1), row(3, 1.3, exchange=0.3)]
    checked = StepModel(rows).check()
    assert checked == {3: (pytest.approx(3 / math.sqrt(1.1 * 1.2)), pytest.approx(3 / 1.3))}
    assert worst_error(checked) == pytest.approx(math.log(1.3 / math.sqrt(1.1 * 1.2)))


def test_the_error_of_the_check_widens_the_band():
    model = StepModel([row(1, 1.0), row(2, 1.1, exchange=0.1)])
    surer, less_sure = model.project(4, Cluster()), model.project(4, Cluster(), error=0.1)
    assert less_sure.speedup.low == pytest.approx(surer.speedup.low * math.exp(-0.1))
    assert less_sure.speedup.high == pytest.approx(surer.speedup.high * math.exp(0.1))


def test_a_line_of_a_single_point_is_proportional():
    assert fit_line({64: 0.5}, 256) == pytest.approx(2.0)


def test_a_ring_takes_two_latencies_per_message_and_the_bandwidth():
    latency_seconds, bandwidth_seconds = ring_seconds(4, 1e8, LINK)  # 125 MB/s, 1 ms
    assert latency_seconds == pytest.approx(6 * 2e-3)
    assert bandwidth_seconds == pytest.approx(6 * 1e8 / 4 / 1.25e8)


def test_one_host_exchanges_with_no_other():
    assert sum(ring_seconds(1, 1e9, LINK)) == 0


@pytest.mark.parametrize("text", ["fast", "10Gbit/s", "0Gbit/s,1ms", "1Gbit/s,1.2.3ms", "10GB/s,1us"])
def test_a_link_that_is_none_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="link"):
        Link.parse(text)


def test_the_units_of_a_link():
    found = Link.parse("25 Gbit/s, 10us")
    assert (found.bytes_per_second, found.latency_seconds) == (pytest.approx(25e9 / 8), pytest.approx(1e-5))


@pytest.fixture
def example(tmp_path):
    return written(tmp_path, gradient_bytes=814_120)


def written(folder, gradient_bytes):
    """Results of a sweep of one and two workers, whose steps tell what they are made of: 1.1 s of work."""

    def at(workers, seconds):
        work = {"data": 0.0, "compute": 1.0, "wait": 0.0, "communicate": 0.0, "update": 0.1}

        def explained(block):
            own, alone = replace(block.arms["candidate"], gradient_bytes=gradient_bytes), block.arms["baseline"]
            phases = [work | {"communicate": 0.2}] * len(own.processes)
            return changed(block, candidate=with_phases(own, *phases), baseline=with_phases(alone, work))

        return result(f"workers={workers}", seconds=[seconds] * 3, baseline=[2, 2, 2], change=explained)

    return str(write_sweep(folder / "example", at(1, 2.0), at(2, 1.2)))


def hosts(link):
    return Cluster(2, Link.parse(link), gradient_bytes=1e6)


def test_a_folder_without_a_good_result_is_refused(tmp_path, capsys):
    broken = result("workers=2", seconds=[1.0], baseline=[1.0], status="failed", error="no luck")
    folder = write_sweep(tmp_path / "sweep", broken)
    assert main([str(folder), "--workers", "8"]) == 1
    assert "has no usable result" in capsys.readouterr().err


def test_the_command_says_that_nothing_of_it_was_measured(example, capsys):
    assert main([example, "--workers", "8,64", "--link", "25Gbit/s,10us", "--workers-per-host", "2"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "projected, not measured:"
    assert [line.partition(": ")[0] for line in lines] == ["8 workers on 4 hosts", "64 workers on 32 hosts"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--link", "1Gbit/s,1ms"], "--link and --workers-per-host belong together"),
        (["--link", "1Gbit/s,1ms", "--workers-per-host", "0"], "--workers-per-host 0: it must be at least 1"),
        (["--overlap", "2"], "--overlap 2.0: it must be a share between 0 and 1"),
        (["--overlap", "0.5"], "--overlap and --gradient-mb describe the exchange between hosts: give --link, too"),
        (["--gradient-mb", "-5"], "--gradient-mb -5: it must be above 0"),
        (["--link", ",1ms", "--workers-per-host", "2"], "link ',1ms': write a bandwidth and a latency"),
        (["--series", "x"], "--series x: the folder has a single series; leave --series out"),
    ],
)
def test_a_mistake_is_explained_in_one_line(example, arguments, message, capsys):
    assert main([example, "--workers", "8", *arguments]) > 0
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_an_unknown_gradient_size_has_to_be_given(tmp_path, capsys):
    folder = written(tmp_path, gradient_bytes=None)
    words = [folder, "--workers", "8", "--link", "25Gbit/s,10us", "--workers-per-host", "2"]
    assert main(words) == 2
    assert "the size of a script's gradient is unknown: give --gradient-mb" in capsys.readouterr().err
    assert main([*words, "--gradient-mb", "1"]) == 0


def test_results_that_do_not_tell_steps_are_refused(tmp_path, capsys):
    folder = write_sweep(tmp_path, result("workers=2", seconds=[1, 1], baseline=[2, 2]))
    assert main([str(folder), "--workers", "8"]) == 1
    assert "can't project: no row" in capsys.readouterr().err


@pytest.mark.parametrize("place", [1.0, 0.5, 8.0])
def test_a_line_through_a_single_point_begins_at_0(place):
    assert fit_line({place: 3.0}, 2 * place) == pytest.approx(6.0)
