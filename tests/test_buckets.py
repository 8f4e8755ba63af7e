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

from dpexp.errors import WorkerError
from dpexp.processes import launch
from dpexp.processes.shared_memory import chunk_bounds
from dpexp.processes.world import WorldSpec
from dpexp.results.phases import COMMUNICATE
from dpexp.train import loop
from dpexp.train.data.dataset import load
from dpexp.train.models import architectures
from dpexp.train.models.initial_state import initial_state
from dpexp.train.recorder import Recorder
from dpexp.train.strategies import strategy_class
from dpexp.train.strategies.core_sharing import CoreTurn
from dpexp.train.strategies.hybrid_dp import in_buckets
from dpexp.train.strategies.reduce_scatter import ReduceScatter, move

LINE = 16  # float32 in a cache line
SHAPES = st.lists(st.lists(st.integers(0, 9), max_size=3).map(tuple), min_size=1, max_size=8)
BUCKET_BYTES = st.sampled_from([1.0, 100.0, 1000.0, math.inf])


def cut(shapes, flat, gradients, row, bucket_bytes, adds=False):
    """The buckets of new parameters, which move to `flat`."""
    parameters = [torch.nn.Parameter(torch.empty(shape)) for shape in shapes]
    move(parameters, flat)
    return in_buckets(ReduceScatter(parameters, flat, gradients, row, adds), bucket_bytes)


@given(shapes=SHAPES, ranks=st.integers(1, 4), bucket_bytes=BUCKET_BYTES)
def test_the_chunks_of_all_buckets_are_the_parameters_once(shapes, ranks, bucket_bytes):
    elements = sum(math.prod(shape) for shape in shapes)
    flat, gradients = torch.zeros(elements), torch.zeros(ranks, elements)
    for rank in range(ranks):
        buckets = cut(shapes, flat, gradients, rank, bucket_bytes)
        for bucket in buckets:
            bucket.chunk.add_(1)  # every rank its own
        assert all(sum(p.nbytes for p in bucket.parameters) >= bucket_bytes for bucket in buckets[:-1])
        in_order = [parameter for bucket in reversed(buckets) for parameter in bucket.parameters]
        assert [tuple(parameter.shape) for parameter in in_order] == shapes
    assert all(bool((parameter == 1).all()) for parameter in in_order)
    assert flat.sum() == elements


def backward(buckets, random, parts):
    """Random gradients of a batch in so many parts; returns them as `flat` is ordered, zeros where there is none."""
    ordered = []
    for parameter in (parameter for bucket in reversed(buckets) for parameter in bucket.parameters):
        for _ in range(parts):
            if torch.rand((), generator=random) < 0.8:  # else no sample used it
                gradient = torch.rand(parameter.shape, generator=random)
                if parameter.dim() == 3:  # as torch's channels_last makes them
                    gradient = gradient.permute(1, 2, 0).contiguous().permute(2, 0, 1)
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        ordered.append(torch.zeros(parameter.numel()) if parameter.grad is None else parameter.grad.flatten())
    return torch.cat(ordered)


@settings(deadline=None)  # the first call of some torch functions takes long
@given(
    shapes=SHAPES,
    groups=st.integers(1, 4),
    more_ranks=st.integers(0, 6),
    parts=st.integers(1, 3),
    bucket_bytes=BUCKET_BYTES,
    seed=st.integers(0, 9),
)
def test_the_sums_are_those_of_all_gradients_and_nothing_is_kept(shapes, groups, more_ranks, parts, bucket_bytes, seed):
    """With more ranks than groups, some publish onto others' gradients, as where workers share cores."""
    elements = sum(math.prod(shape) for shape in shapes)
    flat, gradients = torch.zeros(elements), torch.full((groups, elements), torch.nan)
    turns = CoreTurn.create(groups + more_ranks, groups)
    ranks = [cut(shapes, flat, gradients, turn.group, bucket_bytes, not turn.is_first) for turn in turns]
    random = torch.Generator().manual_seed(seed)
    for _ in range(2):
        expected = torch.zeros(elements)
        for buckets in ranks:  # each group's one after the other
            expected += backward(buckets, random, parts)
            for bucket in buckets:
                bucket.publish()
                assert all(parameter.grad is None for parameter in bucket.parameters)
        last = sorted((turn.group, rank) for rank, turn in enumerate(turns) if turn.is_last)
        for _, rank in last:
            for bucket in ranks[rank]:
                bucket.sum_chunk()
        count = len(ranks[0])
        totals = [ranks[rank][number].total for number in reversed(range(count)) for _, rank in last]
        torch.testing.assert_close(torch.cat(totals), expected)


@given(elements=st.integers(0, 1000), ranks=st.integers(1, 6))
def test_chunks_are_as_even_as_cache_lines_allow(elements, ranks):
    bounds = chunk_bounds(torch.empty(elements), ranks)
    assert len(bounds) == ranks + 1
    assert bounds == sorted(bounds)
    assert (bounds[0], bounds[-1]) == (0, elements)
    assert all(bound % LINE == 0 for bound in bounds[:-1] if bound < elements)
    assert all(abs(bound - elements * n / ranks) <= LINE / 2 for n, bound in enumerate(bounds))


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


def by_all_workers(config, program):
    """What each worker reports of the program, which receives what a training does."""
    dataset = load(config)
    initial = initial_state(config, dataset)
    shared = strategy_class(config).share(config, initial)
    return launch.launch(WorldSpec(program, [(config, dataset, initial, own) for own in shared]))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], ([4, 4], 4)),
        (["batch.accumulation=2"], ([4, 4], 4)),  # once a step, not once a part
        (["strategy.bucket_mb=null"], ([0, 0], 1)),
        (["strategy.hosts=1"], ([0, 0], 1)),  # no network to wait for
    ],
)
def test_buckets_are_exchanged_while_backward_computes(overrides, expected):
    base = ["strategy=hybrid_dp", "strategy.hosts=2", "strategy.bucket_mb=1e-6", "workers=2"]
    reports = by_all_workers(tiny(*base, *overrides), exchanged_before_update)
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


class CurrentPhase(Recorder):
    phase = None

    def enter(self, phase):
        self.phase = phase


def phases_of_an_exchange(rank, config, dataset, initial, shared, notify):
    """What is done to exchange a step's gradients, and in which phases."""
    model = architectures.build(config.model, dataset.input_shape, dataset.classes).to(torch.float64)
    strategy = strategy_class(config)(config, rank, model, initial, shared)
    strategy.start()
    strategy.recorder, noted = CurrentPhase(), set()

    def note(owner, name):
        done = getattr(owner, name)

        def noting(*arguments, **named):
            noted.add((name, strategy.recorder.phase))
            return done(*arguments, **named)

        setattr(owner, name, noting)

    note(ReduceScatter, "publish")
    note(ReduceScatter, "sum_chunk")
    inputs, labels = dataset.tensors["train_inputs"], dataset.tensors["train_labels"]
    loop.step(config, strategy, inputs, labels, torch.arange(24), inputs.new_zeros(()))
    strategy.barrier()
    return sorted(noted)


@pytest.mark.parametrize("strategy", ["sync_dp", "hybrid_dp"])
def test_copies_and_sums_are_communication(strategy):
    config = tiny(f"strategy={strategy}", "workers=2")
    phases = [("publish", COMMUNICATE), ("sum_chunk", COMMUNICATE)]
    assert by_all_workers(config, phases_of_an_exchange) == [phases, phases]


@pytest.mark.parametrize("bucket_mb", ["null", "1e-6"])
def test_waiting_for_another_host_is_communication(bucket_mb):
    config = tiny("strategy=hybrid_dp", "strategy.hosts=2", f"strategy.bucket_mb={bucket_mb}", "workers=2")
    assert by_all_workers(config, phase_of_waiting) == [[COMMUNICATE], [COMMUNICATE]]


def test_a_second_gradient_of_an_exchanged_parameter_is_refused(tmp_path):
    """It would be lost."""
    own = ["model=custom", "model.builder=user_models:with_a_backward_of_its_own", "strategy.bucket_mb=1e-6"]
    with pytest.raises(WorkerError, match=r"computes a gradient twice in a step; set strategy\.bucket_mb=null"):
        trained_state(tiny("strategy=hybrid_dp", "strategy.hosts=2", "workers=2", *own), tmp_path)
