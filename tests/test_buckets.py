"""Gradients in buckets: each parameter in one of them, and exchanged while backward still computes."""

from __future__ import annotations

import itertools
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
from dpexp.phases import COMMUNICATE, COMPUTE
from dpexp.processes import launch
from dpexp.clock.recorder import NoRecorder
from dpexp.strategies import buckets, strategy_class
from dpexp.strategies.late_gradients import LateGradient
from dpexp.training import loop

LINE = 16  # float32 in a cache line
SHAPES = st.lists(st.lists(st.integers(0, 9), max_size=3).map(tuple), min_size=1, max_size=8)
BUCKET_BYTES = st.sampled_from([1.0, 100.0, 1000.0, math.inf])


@given(shapes=SHAPES, teams=st.integers(1, 4), bucket_bytes=BUCKET_BYTES)
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


class Acted:
    """One rank of several that are acted in one process, one after the other; two steps with random gradients."""

    def __init__(self, shapes, late, flat, buffers, rank, ranks, bucket_bytes):
        teams = len(buffers)
        self.is_first = rank < teams
        self.is_last = rank + teams >= ranks
        self.parameters = [torch.nn.Parameter(torch.empty(shape, dtype=flat.dtype)) for shape in shapes]
        self.late = {
            parameter: LateGradient(parameter)
            for parameter, is_late in zip(self.parameters, late, strict=True)
            if is_late and parameter.dim() == 2 and parameter.numel()
        }
        self.buckets = buckets.cut(
            self.parameters, flat, buffers, rank % teams, bucket_bytes, self.late, self.is_first, self.is_last
        )

    def backward(self, random, parts):
        """Random gradients of a batch in so many parts; their sum, in the order of the buckets."""
        sums = {}
        for parameter in self.parameters:
            sums[parameter] = torch.zeros_like(parameter)
            if parameter in self.late:
                for _ in range(parts):
                    gradient, inputs = (torch.rand(4, size, generator=random) for size in parameter.shape)
                    self.late[parameter].keep(gradient, inputs)
                    sums[parameter] += gradient.t() @ inputs
            elif torch.rand((), generator=random) < 0.8:  # else no sample used it
                gradient = torch.rand(parameter.shape, generator=random)
                if parameter.dim() == 3:  # as torch's channels_last makes them
                    gradient = gradient.permute(1, 2, 0).contiguous().permute(2, 0, 1)
                parameter.grad = gradient
                sums[parameter] += gradient
        ordered = [sums[parameter].flatten() for bucket in self.buckets for parameter in bucket.parameters]
        return torch.cat(ordered).detach()

    def write(self, which, adds):
        for bucket in self.buckets:
            if which == "kept":
                bucket.sum.compute()
            parts = getattr(bucket, which)
            onto = not bucket.sum.is_empty if which == "kept" else adds
            parts.multiply(onto)
            parts.write(onto)


@settings(deadline=None)  # the first call of some torch functions takes long
@given(
    shapes=SHAPES,
    late=st.lists(st.booleans(), min_size=8, max_size=8),
    teams=st.integers(1, 4),
    more_ranks=st.integers(0, 6),
    parts=st.integers(1, 3),
    bucket_bytes=BUCKET_BYTES,
    seed=st.integers(0, 9),
)
def test_the_sums_are_those_of_all_gradients_and_nothing_is_kept(
    shapes, late, teams, more_ranks, parts, bucket_bytes, seed
):
    ranks, elements = teams + more_ranks, sum(math.prod(shape) for shape in shapes)
    flat, buffers = torch.zeros(elements), torch.full((teams, elements), torch.nan)
    own = [shapes, late[: len(shapes)], flat, buffers]
    acted = [Acted(*own, rank, ranks, bucket_bytes) for rank in range(ranks)]
    random = torch.Generator().manual_seed(seed)
    for _ in range(2):
        expected = torch.zeros(elements)
        for rank in acted:  # each team's one after the other
            expected += rank.backward(random, parts)
            rank.write("published", adds=not rank.is_first)
        last = sorted((rank for rank in acted if rank.is_last), key=lambda rank: acted.index(rank) % teams)
        for rank in last:
            rank.write("kept", adds=True)
        totals = [rank.buckets[number].sum.total for number in range(len(acted[0].buckets)) for rank in last]
        torch.testing.assert_close(torch.cat(totals), expected)
        for bucket in (bucket for rank in acted for bucket in rank.buckets):
            bucket.clear()
            assert all(parameter.grad is None for parameter in bucket.parameters)
            assert all(late._factors is None for late in bucket.late)


@given(shapes=SHAPES, teams=st.integers(1, 6))
def test_chunks_are_as_even_as_cache_lines_allow_and_late_gradients_are_cut_between_rows(shapes, teams):
    parameters = [torch.empty(shape) for shape in shapes]
    late = {parameter: None for parameter in parameters if parameter.dim() == 2 and parameter.numel()}
    bounds = buckets.chunk_bounds(parameters, teams, late)
    elements, row = bounds[-1], max([0, *(parameter.shape[1] for parameter in late)])
    assert len(bounds) == teams + 1
    assert bounds == sorted(bounds)
    assert all(abs(bound - elements * n / teams) <= max(row, LINE) / 2 for n, bound in enumerate(bounds))
    starts = itertools.accumulate((parameter.numel() for parameter in parameters), initial=0)
    for parameter, start in zip(parameters, starts, strict=False):
        for bound in bounds:
            if parameter in late and start < bound < start + parameter.numel():
                assert (bound - start) % parameter.shape[1] == 0


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


class CurrentPhase(NoRecorder):
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
            noted.add((owner.__name__, strategy.recorder.phase))
            return done(*arguments, **named)

        setattr(owner, name, noting)

    note(LateGradient, "write")
    note(buckets.Parts, "write")
    note(buckets.ChunkSum, "compute")
    inputs, labels = dataset.tensors["train_inputs"], dataset.tensors["train_labels"]
    loop.step(config, strategy, inputs, labels, torch.arange(24), inputs.new_zeros(()))
    strategy.barrier()
    return sorted(noted)


@pytest.mark.parametrize("strategy", ["sync_dp", "hybrid_dp"])
def test_products_are_computing_and_copies_and_sums_are_communication(strategy):
    config = tiny(f"strategy={strategy}", "workers=2", "model.hidden=[200]", "data.shape=[1,13,13]")
    phases = [("ChunkSum", COMMUNICATE), ("LateGradient", COMPUTE), ("Parts", COMMUNICATE)]
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
