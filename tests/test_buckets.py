"""Gradients in buckets: each parameter in one of them, and exchanged while backward still computes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from conftest import tiny
from hypothesis import given
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

LINE_BYTES = 64


@given(
    sizes=st.lists(st.integers(1, 200), min_size=1, max_size=8),
    teams=st.integers(1, 4),
    bucket_bytes=st.sampled_from([1.0, 300.0, 1000.0, float("inf")]),
)
def test_the_chunks_of_all_buckets_are_the_parameters_once(sizes, teams, bucket_bytes):
    padded = buckets.padded_size(sum(sizes), teams, torch.float32, bucket_bytes)
    flat, gradients = torch.zeros(padded), torch.zeros(teams, padded)
    for team in range(teams):
        parameters = [torch.nn.Parameter(torch.empty(size)) for size in sizes]
        cut = buckets.cut(parameters, flat, gradients, team, bucket_bytes)
        for bucket in cut:
            bucket.chunk[: bucket.used] += 1  # every team its own
            assert bucket.chunk.data_ptr() % LINE_BYTES == flat.data_ptr() % LINE_BYTES
        assert all(sum(place.nbytes for place in b.places.values()) >= bucket_bytes for b in cut[:-1])
    assert all(bool((parameter == 1).all()) for parameter in parameters)
    assert flat.sum() == sum(sizes)  # and no padding is exchanged


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
        (["model.hidden=[200]", "data.shape=[1,13,13]", "linear_kernel=torch"], ([4, 4], 4)),  # in place
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
