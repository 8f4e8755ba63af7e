"""The built-in models take the samples that they are meant for."""

from __future__ import annotations

import pytest
import torch
from basics import tiny

from dpexp.train.models.architectures import build_model


@pytest.mark.parametrize(
    ("shape", "is_small"), [((1, 8, 8), "true"), ((3, 32, 32), "true"), ((3, 40, 40), "false"), ((1, 40, 40), "false")]
)
def test_resnet18_takes_images_of_any_channels(shape, is_small):
    model = build_model(tiny("model=resnet18", f"model.small_images={is_small}").model, shape, 3, torch.float32)
    assert model(torch.zeros(2, *shape)).shape == (2, 3)
