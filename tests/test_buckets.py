"""Gradients in buckets: each parameter in one of them, and exchanged while backward still computes."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from training_helpers import trained_state

from dpexp.data.dataset import load
from dpexp.errors import WorkerError
from dpexp.models import architectures
from dpexp.models.initial_state import initial_state
from dpexp.phases import COMMUNICATE
from dpexp.processes import launch
from dpexp.processes.recorder import NoRecorder
from dpexp.strategies import buckets, strategy_class
from dpexp.training import loop

SHAPES = st.lists(st.lists(st.integers(1, 9), max_size=3).map(tuple), min_size=1, max_size=8)


@given(shapes=SHAPES, teams=st.integers(1, 4), bucket_bytes=st.sampled_from([1.0, 100.0, 1000.0, float("inf")]))
def test_the_chunks_of_all_buckets_are_the_parameters_once(shapes, teams, bucket_bytes):
    elements = sum(math.prod(shape) for shape in shapes)
    flat, gradients = torch.zeros(elements), torch.zeros(teams, elements)
    for team in range(teams):
        parameters = [torch.nn.Parameter(torch.empty(shape)) for shape in shapes]
        cut = buckets.cut(parameters, flat, gradients, team, bucket_bytes, {})
        for bucket in cut:
            bucket.chunk.add_(1)  # every team its own
        assert all(sum(p.nbytes for p in bucket.parameters) >= bucket_bytes for bucket in cut[:-1])
    assert all(bool((parameter == 1).all()) for parameter in parameters)
    assert flat.sum() == elements


@settings(deadline=None)  # the first call of some torch functions takes long
@given(shapes=SHAPES, teams=st.integers(1, 4), ranks_a_team=st.integers(1, 3), unused=st.sets(st.integers(0, 3)))
def test_the_sums_are_those_of_all_gradients(shapes, teams, ranks_a_team, unused):
    """Acted in one process: the ranks of a team one after the other, the last ones when all have published."""
    elements, generator = sum(math.prod(shape) for shape in shapes), torch.Generator().manual_seed(0)
    flat, buffers = torch.zeros(elements), torch.full((teams, elements), torch.nan)
    expected, last = torch.zeros(elements), []
    for rank in range(teams * ranks_a_team):
        is_first, is_last = rank < teams, rank >= teams * (ranks_a_team - 1)
        parameters = [torch.nn.Parameter(torch.empty(shape)) for shape in shapes]
        (bucket,) = buckets.cut(
            parameters, flat, buffers, rank % teams, math.inf, {}, is_first=is_first, is_last=is_last
        )
        for number, parameter in enumerate(parameters):
            if number not in unused:
                parameter.grad = torch.rand(parameter.shape, generator=generator)
        expected += torch.cat(
            [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters]
        )
        bucket.published.write(adds=not is_first)
        last += [bucket] if is_last else []
    for bucket in last:
        bucket.sum.compute()
        bucket.kept.write(adds=not bucket.sum.is_empty)
    torch.testing.assert_close(torch.cat([bucket.sum.total for bucket in last]), expected)


@given(shapes=SHAPES, teams=st.integers(1, 6))
def test_chunks_are_as_even_as_rows_allow(shapes, teams):
    parameters = [torch.empty(shape) for shape in shapes]
    bounds = buckets.chunk_bounds(parameters, teams)
    elements, longest = bounds[-1], max(math.prod(shape[1:]) for shape in shapes)
    assert len(bounds) == teams + 1
    assert all(abs(bound - elements * number / teams) <= longest / 2 for number, bound in enumerate(bounds))


def exchanged_before_update(rank, config, dataset, initial, shared, notify):
    """The buckets whose exchange had begun when backward ended, and the number of all."""
    model = architectures.build(config.model, dataset.input_shape, dataset.classes).to(torch.float64)
    strategy = strategy_class(config)(config, rank, model, initial, shared)
    strategy.start()
    begun, update = [], strategy.update
    strategy.update = lambda: (begun.append(len(strategy._exchanges)), update())
    inputs, labels = dataset.tensors["train_inputs"], dataset.tensors["train_labels"]
    for batch in torch.arange(48).split(24):
        loop.step(config, strategy, inputs, labels, batch, inputs.new_zeros(()))
    strategy.barrier()
    return begun, len(strategy._buckets)


def on_two_hosts(config, program):
    """What each of its workers reports of the program, which receives what a training does."""
    dataset = load(config)
    initial = initial_state(config, dataset)
    shared = strategy_class(config).share(config, initial)
    try:
        arguments = [(config, dataset, initial, own) for own in shared]
        return launch.launch(program, arguments, lambda notice: None)
    finally:
        for own in shared:
            own.close()


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], ([4, 4], 4)),
        (["batch.accumulation=2"], ([4, 4], 4)),  # once a step, not once a part
        (["strategy.bucket_mb=null"], ([0, 0], 1)),
        (["strategy.hosts=1"], ([0, 0], 1)),  # no network to wait for
        (["model.hidden=[200]", "data.shape=[1,13,13]", "linear_kernel=torch"], ([4, 4], 4)),  # late gradients
    ],
)
def test_buckets_are_exchanged_while_backward_computes(overrides, expected):
    base = ["strategy=hybrid_dp", "strategy.hosts=2", "strategy.bucket_mb=1e-6", "workers=2"]
    reports = on_two_hosts(tiny(*base, *overrides), exchanged_before_update)
    assert reports == [expected, expected]


def phase_of_waiting(rank, config, dataset, initial, shared, notify):
    """The phase in which a worker waits for what it exchanges with another host."""
    model = architectures.build(config.model, dataset.input_shape, dataset.classes).to(torch.float64)
    strategy = strategy_class(config)(config, rank, model, initial, shared)
    strategy.start()
    strategy.recorder, phases = CurrentPhase(), []
    update, wait = strategy.update, SimpleNamespace(wait=lambda: phases.append(strategy.recorder.phase))
    strategy.update = lambda: (strategy._exchanges.append(wait), update())
    inputs, labels = dataset.tensors["train_inputs"], dataset.tensors["train_labels"]
    loop.step(config, strategy, inputs, labels, torch.arange(24), inputs.new_zeros(()))
    strategy.barrier()
    return phases


class CurrentPhase(NoRecorder):
    phase = None

    def enter(self, phase):
        self.phase = phase


@pytest.mark.parametrize("bucket_mb", ["null", "1e-6"])
def test_waiting_for_another_host_is_communication(bucket_mb):
    config = tiny("strategy=hybrid_dp", "strategy.hosts=2", f"strategy.bucket_mb={bucket_mb}", "workers=2")
    assert on_two_hosts(config, phase_of_waiting) == [[COMMUNICATE], [COMMUNICATE]]


def test_a_second_gradient_of_an_exchanged_parameter_is_refused(tmp_path):
    """It would be lost."""
    own = ["model=custom", "model.builder=user_models:with_a_backward_of_its_own", "strategy.bucket_mb=1e-6"]
    with pytest.raises(WorkerError, match=r"computes a gradient twice in a step; set strategy\.bucket_mb=null"):
        trained_state(tiny("strategy=hybrid_dp", "strategy.hosts=2", "workers=2", *own), tmp_path)
