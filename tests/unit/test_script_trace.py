"""Where the time of a script's steps goes: the hooks, with a clock that only moves where a test says so."""

from __future__ import annotations

import importlib
import itertools
import math
import sys
import threading
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dpexp.launchers.command_processes import SCRIPT_HOOK
from dpexp.measurement.script_trainer import _phases, _phases_of_step
from dpexp.phases import MAX_PHASE_STEPS


@pytest.fixture
def now(monkeypatch):
    """The clock module, its time (`now.seconds`), and what moves it."""
    monkeypatch.syspath_prepend(SCRIPT_HOOK)
    module = importlib.import_module("dpexp_clock")
    state = SimpleNamespace(seconds=0.0, module=module)
    for one in (module, importlib.import_module("dpexp_trace")):
        monkeypatch.setattr(one, "time", SimpleNamespace(perf_counter=lambda: state.seconds))
    yield state
    for name in ("dpexp_clock", "dpexp_trace"):
        sys.modules.pop(name)


class Training:
    """One process; each part of a step takes the given seconds."""

    def __init__(self, now, monkeypatch, exchange: float = 0.0) -> None:
        self.now, self.model = now, nn.Linear(2, 1)
        self.model.register_forward_hook(lambda *ignored: self.take(3))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        backward = torch.autograd.backward

        self.exchange = exchange

        def with_exchange(*arguments, **options):
            backward(*arguments, **options)
            self.take(self.exchange)

        monkeypatch.setattr(torch.autograd, "backward", with_exchange)
        self.trace = now.module.Trace(self.optimizer)

    def take(self, seconds: float) -> None:
        self.now.seconds += seconds

    def forward_and_backward(self) -> None:
        self.take(2)  # for data
        self.model(torch.ones(4, 2)).sum().backward()

    def end_step(self) -> None:
        self.take(1)
        self.trace.end_step(self.now.seconds)


def test_a_step_is_data_then_compute_then_update(now, monkeypatch):
    training = Training(now, monkeypatch)
    for _ in range(2):
        training.forward_and_backward()
        training.end_step()
    assert [step[:3] for step in training.trace.end()] == [(2, 3, 1)] * 2


def test_what_backward_takes_after_the_last_gradient_is_synchronization(now, monkeypatch):
    training = Training(now, monkeypatch, exchange=4)
    training.forward_and_backward()
    training.end_step()
    assert training.trace.end() == [(2, 3, 1, [(5, 4)])]  # it arrived at 5


def test_gradient_accumulation_adds_up(now, monkeypatch):
    training = Training(now, monkeypatch)
    training.forward_and_backward()
    training.forward_and_backward()
    training.end_step()
    assert [step[:3] for step in training.trace.end()] == [(4, 6, 1)]


def test_a_script_that_averages_gradients_itself_meets_the_others_there(now, monkeypatch):
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: setattr(now, "seconds", now.seconds + 6))
    training = Training(now, monkeypatch)
    training.forward_and_backward()
    torch.distributed.all_reduce(None)
    training.end_step()
    assert training.trace.end() == [(2, 3, 1, [(5, 0), (5, 6)])]


def test_a_collective_after_the_last_gradient_is_part_of_that_synchronization(now, monkeypatch):
    """As of FSDP, or of a communication hook that waits."""
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: setattr(now, "seconds", now.seconds + 6))
    training = Training(now, monkeypatch)
    training.take, take = (
        lambda seconds: torch.distributed.all_reduce(None) if seconds == 9 else take(seconds),
        training.take,
    )
    training.exchange = 9
    training.forward_and_backward()
    training.end_step()
    assert training.trace.end() == [(2, 3, 1, [(5, 6)])]


def test_a_collective_between_gradients_is_no_computation(now, monkeypatch):
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: setattr(now, "seconds", now.seconds + 6))
    training = Training(now, monkeypatch)
    training.model = nn.Sequential(nn.Linear(2, 2), training.model)
    training.model[1].register_full_backward_hook(lambda *ignored: torch.distributed.all_reduce(None))
    training.forward_and_backward()
    training.end_step()
    assert training.trace.end() == [(2, 3, 1, [(5, 6), (11, 0)])]


def test_a_collective_within_forward_is_no_computation(now, monkeypatch):
    monkeypatch.setattr(torch.distributed, "all_gather", lambda tensor: setattr(now, "seconds", now.seconds + 6))
    training = Training(now, monkeypatch)
    training.model.register_forward_hook(lambda *ignored: torch.distributed.all_gather(None))
    training.forward_and_backward()
    training.end_step()
    assert training.trace.end() == [(2, 3, 1, [(5, 6), (11, 0)])]


def test_a_collective_that_waits_for_itself_is_one_sync_point(now, monkeypatch):
    monkeypatch.setattr(torch.distributed.Work, "wait", lambda work: setattr(now, "seconds", now.seconds + 6))
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: torch.distributed.Work.wait(None))
    training = Training(now, monkeypatch)
    torch.distributed.all_reduce(None)
    training.forward_and_backward()
    training.end_step()
    assert training.trace.end() == [(2, 3, 1, [(0, 6), (11, 0)])]


def test_modules_without_parameters_prepare_data(now, monkeypatch):
    """As torchvision's transforms do."""
    training = Training(now, monkeypatch)
    transform = nn.ReLU()
    transform.register_forward_hook(lambda *ignored: training.take(7))
    transform(torch.ones(1))
    training.forward_and_backward()
    training.end_step()
    assert training.trace.end()[0][:3] == (9, 3, 1)


def test_what_another_thread_computes_is_no_part_of_the_step(now, monkeypatch):
    """As an actor that asks the model what to do next."""
    training = Training(now, monkeypatch)
    actor = threading.Thread(target=training.forward_and_backward)
    actor.start()
    actor.join()  # 5 s
    training.forward_and_backward()
    training.end_step()
    assert training.trace.end()[0][:3] == (7, 3, 1)


def test_gradients_that_another_optimizer_updates_are_computed_too(now, monkeypatch):
    """As those of a second network, or of a part whose state another process keeps."""
    training = Training(now, monkeypatch)
    other = nn.Linear(2, 2)
    training.model = nn.Sequential(other, training.model)
    other.weight.register_post_accumulate_grad_hook(lambda parameter: training.take(4))
    training.forward_and_backward()
    training.end_step()
    assert [step[:3] for step in training.trace.end()] == [(2, 7, 1)]


def test_waiting_for_an_exchange_that_was_begun_before_is_a_sync_point(now, monkeypatch):
    monkeypatch.setattr(torch.distributed.Work, "wait", lambda work: setattr(now, "seconds", now.seconds + 6))
    training = Training(now, monkeypatch)
    torch.distributed.Work.wait(None)
    training.forward_and_backward()
    training.end_step()
    assert training.trace.end() == [(2, 3, 1, [(0, 6), (11, 0)])]


@pytest.mark.parametrize(("calls", "rows"), [(1, 4), (2, 8)], ids=["a batch", "two parts of one"])
def test_the_samples_of_a_step_are_the_rows_that_models_receive(now, calls, rows):
    samples = now.module.Samples()
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    for _ in range(calls):
        nn.ReLU()(torch.ones(9, 2))
        model(torch.ones(4, 2))
    samples.end()
    model(torch.ones(4, 2))
    assert samples.seen == {"samples": rows, "exchanges": False, "by_ddp": False}


def test_of_an_encoder_and_a_decoder_each_sample_counts_once(now):
    samples = now.module.Samples()
    encoder, decoder = nn.Linear(2, 3), nn.Linear(3, 2)
    for _ in range(2):
        decoder(encoder(torch.ones(4, 2)))
    assert samples.seen["samples"] == 8
    samples.end()


@pytest.mark.parametrize("name", ["DistributedDataParallel", "FSDPModule"])
def test_a_model_that_exchanges_gradients_is_recognized_by_its_class_or_base_class(now, name):
    extended = type("Mine", (type(name, (nn.Linear,), {}),), {})
    samples = now.module.Samples()
    extended(2, 3)(torch.ones(4, 2))
    samples.end()
    assert samples.seen["exchanges"]


def test_samples_passed_by_keyword_are_counted_at_the_first_layer(now):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Embedding(5, 3)

        def forward(self, ids):
            return self.layer(ids)

    samples = now.module.Samples()
    Named()(ids=torch.zeros(6, 7, dtype=torch.int64))
    samples.end()
    assert samples.seen["samples"] == 6


def test_a_closure_within_the_optimizers_step_is_distinguished(now, monkeypatch):
    """As Lightning does it: forward and backward run inside of optimizer.step."""
    training = Training(now, monkeypatch)
    training.optimizer.step(lambda: training.forward_and_backward())
    training.end_step()
    assert [step[:3] for step in training.trace.end()] == [(2, 3, 1)]


class Instrument:
    """The other end of the clock's socket: it has a turn of so many steps for each pause, and the reports."""

    def __init__(self, *turns):
        self._turns, self.reports = list(turns), []

    def send(self, report):
        self.reports.append(report)

    def recv(self):
        return self._turns.pop(0)


@pytest.fixture
def ticking(now, monkeypatch):
    """A function: a clock whose turns are these, and what lets an optimizer make steps of so many seconds."""

    def start(*turns):
        instrument = Instrument(*turns)
        monkeypatch.setattr(now.module, "_connect", lambda: instrument)
        monkeypatch.setattr(now.module, "_introduction", lambda files: "hello")
        monkeypatch.setattr(now.module.atexit, "register", lambda function: None)
        clock = instrument.clock = now.module.StepClock()

        def steps(optimizer, count, seconds, within=()):
            for _ in range(count):
                now.seconds += seconds
                clock.before_step(optimizer, (), {})
                for inner in within:
                    clock.before_step(inner, (), {})
                    clock.after_step(inner, (), {})
                clock.after_step(optimizer, (), {})

        return instrument, steps

    return start


def optimizer():
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)


def seconds(report):
    return [later - earlier for earlier, later in itertools.pairwise(report[0])]


def test_the_clock_follows_another_optimizer_when_the_first_stops(ticking, now):
    """As with a learning-rate finder, or a new optimizer for each fold of the data."""
    instrument, steps = ticking((0, 4, False), (0, 1, False))
    first, second = optimizer(), optimizer()
    steps(first, 3, 1.0)
    steps(second, now.module.MAX_OTHER_STEPS + 1, 7.0)
    assert instrument.reports == ["hello"]
    steps(second, 2, 5.0)
    assert seconds(instrument.reports[1]) == [1, 1, 5, 5]


def test_an_optimizer_within_another_is_part_of_its_step(ticking):
    """As with torch's ZeroRedundancyOptimizer."""
    instrument, steps = ticking((0, 3, False), (0, 1, False))
    steps(optimizer(), 4, 2.0, within=[optimizer()])
    assert seconds(instrument.reports[1]) == [2, 2, 2]


def test_a_step_that_an_exception_ended_hides_no_other(ticking, now):
    instrument, steps = ticking((0, 2, False), (0, 1, False))
    first = optimizer()
    steps(first, 1, 1.0)
    instrument.clock.before_step(first, (), {})
    steps(first, 2, 3.0)
    assert seconds(instrument.reports[1]) == [3, 3]


def test_an_optimizer_beside_the_first_is_no_clock(ticking, now):
    """As in a GAN: a step is one of the first, and all that goes on until its next."""
    instrument, steps = ticking((0, 3, False), (0, 1, False))
    first, second = optimizer(), optimizer()
    steps(first, 1, 1.0)
    for _ in range(3):
        steps(second, now.module.MAX_OTHER_STEPS, 0.1)
        steps(first, 1, 1.0)
    assert seconds(instrument.reports[1]) == pytest.approx([3, 3, 3])


def test_a_trace_continues_with_the_next_optimizer_too(ticking, now):
    instrument, steps = ticking((0, 3, True), (0, 1, False))
    steps(optimizer(), 2, 1.0)
    second = optimizer()
    steps(second, now.module.MAX_OTHER_STEPS + 1, 7.0)
    steps(second, 2, 5.0)
    (times, traced) = instrument.reports[1]
    assert [sum(step[:3]) for step in traced] == [1, 5, 5] == seconds((times,))


def test_no_hook_is_left(now, monkeypatch):
    training = Training(now, monkeypatch)
    traced = torch.autograd.backward
    training.trace.end()
    assert torch.autograd.backward is not traced
    assert not torch.nn.modules.module._global_forward_pre_hooks
    training.forward_and_backward()
    assert now.seconds == 5


def traced(*ranks):
    """A step of processes with these sync points."""
    return [(2.0, 3.0, 1.0, list(sync_points)) for sync_points in ranks]


def turn(step):
    """A traced turn of one step."""
    return [[trace] for trace in step]


def test_who_arrives_first_at_a_sync_point_waits_there():
    first, second = _phases_of_step(traced([(5.0, 4.0), (10.0, 1.0)], [(8.0, 1.0), (10.0, 1.0)]))
    assert (first["wait"], first["communicate"]) == (3, 2)
    assert (second["wait"], second["communicate"]) == (0, 2)


def test_no_wait_is_longer_than_the_sync_point():
    """As the source of a broadcast, which goes on before the others arrive."""
    assert _phases_of_step(traced([(5.0, 1.0)], [(9.0, 1.0)]))[0]["wait"] == 1


def test_where_processes_do_not_meet_equally_often_the_wait_is_unknown():
    phases, _ = _phases_of_step(traced([(5.0, 1.0)], []))
    assert math.isnan(phases["wait"])
    assert phases["communicate"] == 1


def test_a_process_of_its_own_meets_no_other():
    (phases,) = _phases_of_step(traced([(5.0, 1.0)]))
    assert phases == {"data": 2, "compute": 4, "wait": 0, "communicate": 0, "update": 1}


def test_where_waiting_is_mostly_unknown_it_stands_under_communicate(tmp_path):
    matched, unmatched = turn(traced([(5.0, 4.0)], [(8.0, 1.0)])), turn(traced([(5.0, 4.0)], []))
    phases = _phases([matched, unmatched])
    assert "wait" not in phases
    assert phases["communicate"] == [[4.0, 1.0], [4.0, 0.0]]
    assert phases["data"] == [[2.0, 2.0]] * 2


def test_unknown_waits_count_as_zero_if_most_are_known(tmp_path):
    matched, unmatched = turn(traced([(5.0, 4.0)], [(8.0, 1.0)])), turn(traced([(5.0, 4.0)], []))
    phases = _phases([matched] * 19 + [unmatched])
    assert phases["wait"] == [[3.0, 0.0]] * 19 + [[0.0, 0.0]]
    assert phases["communicate"] == [[1.0, 1.0]] * 19 + [[4.0, 0.0]]


def test_of_many_traced_steps_an_even_choice_is_kept(tmp_path):
    turns = [[[(float(number), 50.0, 0.0, [])]] for number in range(1001)]
    data = _phases(turns)["data"]
    assert (len(data), data[0], data[-1]) == (MAX_PHASE_STEPS, [0.0], [1000.0])
    assert _phases([]) == {}


def test_without_backward_nothing_is_distinguished(tmp_path):
    """As with torch.func, whose gradients are no tensors' own."""
    assert _phases([[[(0.1, 0.0, 9.0, [])]]]) == {}
