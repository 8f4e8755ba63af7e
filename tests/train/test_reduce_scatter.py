"""Sums of all ranks' gradients in shared memory, of which each rank makes a chunk."""

from __future__ import annotations

import math

import torch
from basics import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils import vector_to_parameters

from dpexp.phases import COMMUNICATE
from dpexp.processes import launch
from dpexp.processes.shared_memory import chunk_bounds
from dpexp.processes.world import WorldSpec
from dpexp.train import loop
from dpexp.train.data.dataset import load
from dpexp.train.models import architectures
from dpexp.train.models.initial_state import initial_state
from dpexp.train.recorder import Recorder
from dpexp.train.strategies import strategy_class
from dpexp.train.strategies.core_sharing import CoreShare
from dpexp.train.strategies.reduce_scatter import ReduceScatter

LINE = 16  # float32 in a cache line
SHAPES = st.lists(st.lists(st.integers(0, 9), max_size=3).map(tuple), min_size=1, max_size=8)


def placed(shapes, flat, gradients, row, adds=False):
    """A rank's part, with new parameters, which move to `flat`."""
    parameters = [torch.nn.Parameter(torch.empty(shape)) for shape in shapes]
    vector_to_parameters(flat, parameters)
    return ReduceScatter(parameters, flat, gradients, row, adds)


@given(shapes=SHAPES, ranks=st.integers(1, 4))
def test_the_chunks_of_all_ranks_are_the_parameters_once(shapes, ranks):
    elements = sum(math.prod(shape) for shape in shapes)
    flat, gradients = torch.zeros(elements), torch.zeros(ranks, elements)
    for rank in range(ranks):
        part = placed(shapes, flat, gradients, rank)
        part.chunk.add_(1)  # every rank its own
        assert [tuple(parameter.shape) for parameter in part.parameters] == shapes
    assert all(bool((parameter == 1).all()) for parameter in part.parameters)
    assert flat.sum() == elements


def backward(parameters, random, parts):
    """Random gradients of a batch in so many parts; returns them as `flat` is ordered, zeros where there is none."""
    ordered = []
    for parameter in parameters:
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
    seed=st.integers(0, 9),
)
def test_the_sums_are_those_of_all_gradients_and_nothing_is_kept(shapes, groups, more_ranks, parts, seed):
    """With more ranks than groups, some publish onto others' gradients, as where workers share cores."""
    elements = sum(math.prod(shape) for shape in shapes)
    flat, gradients = torch.zeros(elements), torch.full((groups, elements), torch.nan)
    turns = CoreShare.create(groups + more_ranks, groups)
    ranks = [placed(shapes, flat, gradients, turn.group, not turn.is_first) for turn in turns]
    random = torch.Generator().manual_seed(seed)
    for _ in range(2):
        expected = torch.zeros(elements)
        for part in ranks:  # each group's one after the other
            expected += backward(part.parameters, random, parts)
            part.publish()
            assert all(parameter.grad is None for parameter in part.parameters)
        last = [rank for _, rank in sorted((turn.group, rank) for rank, turn in enumerate(turns) if turn.is_last)]
        for rank in last:
            ranks[rank].sum_chunk()
        torch.testing.assert_close(torch.cat([ranks[rank].total for rank in last]), expected)


@given(elements=st.integers(0, 1000), ranks=st.integers(1, 6))
def test_chunks_are_as_even_as_cache_lines_allow(elements, ranks):
    bounds = chunk_bounds(torch.empty(elements), ranks)
    assert len(bounds) == ranks + 1
    assert bounds == sorted(bounds)
    assert (bounds[0], bounds[-1]) == (0, elements)
    assert all(bound % LINE == 0 for bound in bounds[:-1] if bound < elements)
    assert all(abs(bound - elements * n / ranks) <= LINE / 2 for n, bound in enumerate(bounds))


def by_all_workers(config, program):
    """What each worker reports of the program, which receives what a training does."""
    dataset = load(config)
    initial = initial_state(config, dataset)
    shared = strategy_class(config).share(config, initial)
    return launch.launch(WorldSpec(program, [(config, dataset, initial, own) for own in shared]))


class CurrentPhase(Recorder):
    phase = None

    def begin_phase(self, phase):
        self.phase = phase


def phases_of_an_exchange(rank, config, dataset, initial, shared, notify):
    """What is done to exchange a step's gradients, and in which phases."""
    model = architectures.build_model(config.model, dataset.input_shape, dataset.classes).to(torch.float64)
    strategy = strategy_class(config)(config, rank, model, initial, shared)
    strategy.reset()
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


def test_copies_and_sums_are_communication():
    phases = [("publish", COMMUNICATE), ("sum_chunk", COMMUNICATE)]
    assert by_all_workers(tiny("strategy=sync_dp", "workers=2"), phases_of_an_exchange) == [phases, phases]
