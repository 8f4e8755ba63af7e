"""Our updates are those of torch.optim."""

from __future__ import annotations

import pytest
import torch
from basics import tiny

from dpexp.train.models import optimizers

CASES = {
    "sgd": ([], torch.optim.SGD, {}),
    "momentum": (["optimizer.momentum=0.9"], torch.optim.SGD, {"momentum": 0.9}),
    "nesterov": (
        ["optimizer.momentum=0.9", "optimizer.nesterov=true", "optimizer.weight_decay=0.1"],
        torch.optim.SGD,
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    ),
    "adam": (["optimizer=adam", "optimizer.weight_decay=0.1"], torch.optim.Adam, {"weight_decay": 0.1}),
    "adamw": (["optimizer=adamw"], torch.optim.AdamW, {"weight_decay": 0.01}),
}


@pytest.mark.parametrize(("overrides", "kind", "settings"), CASES.values(), ids=CASES.keys())
def test_ten_updates_equal_torchs(overrides, kind, settings):
    config = tiny("optimizer.lr=0.05", *overrides)
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.rand(size, generator=generator, dtype=torch.float64) for size in (7, 30, 1)]
    theirs = [torch.nn.Parameter(parameter.clone()) for parameter in parameters]
    ours = optimizers.Optimizer(config.optimizer, config.learning_rate, parameters)
    reference = kind(theirs, lr=0.05, **settings)
    for _ in range(10):
        gradients = [torch.randn(len(p), generator=generator, dtype=torch.float64) for p in parameters]
        ours.step(gradients)
        for parameter, gradient in zip(theirs, gradients, strict=True):
            parameter.grad = gradient
        reference.step()
    for mine, parameter in zip(parameters, theirs, strict=True):
        torch.testing.assert_close(mine, parameter.detach(), rtol=1e-12, atol=1e-12)


def test_a_missing_gradient_is_zero_and_gradients_are_cleared():
    with_gradient, without = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(3))
    with_gradient.grad = torch.full((2,), 5.0)
    taken = optimizers.take_gradients([with_gradient, without])
    assert [gradient.tolist() for gradient in taken] == [[5, 5], [0, 0, 0]]
    assert with_gradient.grad is None


def rate(*overrides):
    return tiny("batch.scope=per_worker", "batch.size=8", "optimizer.lr=0.1", *overrides).learning_rate


def test_without_a_rule_the_learning_rate_stays():
    assert rate("workers=4") == 0.1


@pytest.mark.parametrize(("rule", "times"), [("linear", 4), ("sqrt", 2)])
def test_a_rule_follows_the_global_batch(rule, times):
    assert rate("workers=4", f"optimizer.lr_rule={rule}") == pytest.approx(0.1 * times)
    assert rate("workers=1", "strategy=sequential", f"optimizer.lr_rule={rule}") == 0.1
    assert rate("workers=4", f"optimizer.lr_rule={rule}", "batch.scope=global") == 0.1
