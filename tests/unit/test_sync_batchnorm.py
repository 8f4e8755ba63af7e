"""Synchronized batch normalization against torch's, in one process, and what it refuses."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import tiny
from torch import nn

from dpexp.errors import ConfigError
from dpexp.train.data.dataset import load
from dpexp.train.models import sync_batchnorm
from dpexp.train.models.initial_state import initial_state

LAYERS = {
    "features": (nn.BatchNorm1d(3), (6, 3)),
    "sequences": (nn.BatchNorm1d(3), (4, 3, 5)),
    "pixels": (nn.BatchNorm2d(3), (4, 3, 2, 2)),
    "voxels": (nn.BatchNorm3d(3), (2, 3, 2, 2, 2)),
    "without weights": (nn.BatchNorm1d(3, affine=False), (6, 3)),
    "cumulative": (nn.BatchNorm1d(3, momentum=None), (6, 3)),
    "without running statistics": (nn.BatchNorm1d(3, track_running_stats=False), (6, 3)),
}


@pytest.mark.parametrize(("layer", "shape"), LAYERS.values(), ids=LAYERS)
def test_alone_a_layer_does_what_torchs_does(layer, shape):
    torch.manual_seed(0)
    # What follows may work in place.
    theirs = nn.Sequential(layer, nn.ReLU(inplace=True)).double()
    ours = copy.deepcopy(theirs)
    sync_batchnorm.synchronize(ours, lambda values: values[None])
    for mode in (True, True, False):
        inputs = torch.randn(shape, dtype=torch.float64)
        results = []
        for model in (theirs, ours):
            model.train(mode)
            leaf = inputs.clone().requires_grad_()
            outputs = model(leaf)
            outputs.pow(2).sum().backward()
            results.append([outputs, leaf.grad, *[p.grad for p in model.parameters()], *model.buffers()])
        for expected, found in zip(*results, strict=True):
            torch.testing.assert_close(found, expected)


def test_one_rank_alone_may_evaluate():
    def refuse(values):
        raise AssertionError("nobody answers")

    model = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False))
    sync_batchnorm.synchronize(model, refuse)
    model.eval()(torch.randn(4, 3))


def test_a_model_without_batch_normalization_is_refused():
    config = tiny("batch.sync_batchnorm=true", "workers=2")
    with pytest.raises(ConfigError, match=r"has no torch\.nn\.BatchNorm layer"):
        initial_state(config, load(config))


def test_a_layer_that_does_more_is_refused():
    class Rectified(nn.BatchNorm1d):
        def forward(self, input):
            return super().forward(input).relu()

    with pytest.raises(ConfigError, match="Rectified has a forward"):
        sync_batchnorm.check(nn.Sequential(Rectified(3)))
