"""The gradient noise scale: the estimator against known noise, and what the command makes of it."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import composed
from results_helpers import result, write_sweep

from dpexp.noise_scale import main, noise_scale, scales, squared_norms, statistical_efficiency
from dpexp.train.data.dataset import load


def norms_of(scale, local_batch=16, workers=4, steps=4000):
    """Squared norms of noisy gradients in 50 dimensions, with |G| = 1 and tr(Sigma) = scale."""
    generator = np.random.default_rng(0)
    mean = np.zeros(50)
    mean[0] = 1.0
    noise = generator.normal(0, np.sqrt(scale / 50 / local_batch), (steps, workers, 50))
    local = mean + noise
    return np.stack([(local**2).sum(2).mean(1), (local.mean(1) ** 2).sum(1)], 1)


@pytest.mark.parametrize("scale", [4.0, 60.0, 1000.0])
def test_a_known_noise_scale_is_found(scale):
    assert noise_scale(norms_of(scale), 16, 4) == pytest.approx(scale, rel=0.1)


def test_without_noise_it_is_zero():
    assert noise_scale(norms_of(0.0), 16, 4) == pytest.approx(0, abs=1e-9)


def test_a_gradient_that_is_too_noisy_has_none():
    assert noise_scale(np.array([[1.0, 1 / 8]] * 10), 16, 4) == float("inf")


def test_parts_of_a_training_are_told_apart(monkeypatch):
    early, late = norms_of(4.0), norms_of(60.0)
    found = noise_scales_of(np.concatenate([early, late]), monkeypatch)
    assert found == pytest.approx([found[0], 4, 4, 60, 60], rel=0.15)


def test_two_steps_suffice_for_parts(monkeypatch):
    assert np.isfinite(noise_scales_of(np.array([[2.0, 1.8], [3.0, 2.0]]), monkeypatch)).all()


def noise_scales_of(norms, monkeypatch):
    """Of a training with these squared norms: of the whole, and of its parts."""
    config = composed("workers=4", "data=synthetic", "data.size=64", "batch.size=16")
    monkeypatch.setattr("dpexp.noise_scale.squared_norms", lambda config, dataset: norms)
    (found,) = scales(config, 1)
    return found


def test_a_batch_of_the_noise_scale_teaches_half_as_much_a_sample_as_a_tiny_one():
    assert statistical_efficiency(1000, 1000, 1e-9) == pytest.approx(0.5)
    assert statistical_efficiency(1000, 64, 64) == 1


def test_the_squared_norms_are_those_of_the_gradients_of_mean_losses():
    """Two workers' halves of each batch, against torch's own gradients of the same samples."""
    import torch.nn.functional as F

    from dpexp.train.data.sharding import epoch_order
    from dpexp.train.models.architectures import build
    from dpexp.train.models.initial_state import initial_state

    config = composed("workers=2", "data=synthetic", "data.size=128", "epochs=1", "batch.size=64", "model.hidden=[8]")
    dataset = load(config)
    seen = squared_norms(config, dataset)
    model = build(config.model, dataset.input_shape, dataset.classes)
    with initial_state(config, dataset) as initial:
        model.load_state_dict(initial)
    inputs, labels = dataset.tensors["train_inputs"], dataset.tensors["train_labels"]
    order = epoch_order(128, config.seed, 0)

    def squared(samples):
        model.zero_grad()
        F.cross_entropy(model(inputs[samples]), labels[samples]).backward()
        return sum(float(parameter.grad.square().sum()) for parameter in model.parameters())

    assert seen[0, 0] == pytest.approx((squared(order[:64]) + squared(order[64:])) / 2, rel=1e-4)
    assert seen[0, 1] == pytest.approx(squared(order), rel=1e-4)


def measured(tmp_path, *overrides):
    common = ["data=synthetic", "data.size=2048", *overrides]
    if "model=custom" not in overrides:
        common.append("model.hidden=[16]")
    ones = result("workers=1", *common, seconds=[9, 2, 2], baseline=[9, 2, 2])
    twos = result("workers=2", *common, seconds=[9, 1.25, 1.25], baseline=[9, 2, 2])
    return str(write_sweep(tmp_path, ones, twos))


def test_the_command_multiplies_throughput_by_what_a_sample_teaches(tmp_path, capsys):
    assert main([measured(tmp_path), "--seeds", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("gradient noise scale: ")
    assert lines[1].startswith("1 worker, global batch 64: 1.00 times the throughput x 1.00")
    assert lines[2].startswith("2 workers, global batch 128: 1.60 times the throughput x 0.")
    assert lines[3].startswith("of the measured worker counts, ")
    assert "at most" in lines[4]


@pytest.mark.parametrize(
    ("overrides", "arguments", "message"),
    [
        (
            ["model=custom", "model.builder=user_models:linear"],
            [],
            "would be run: add --builder user_models:linear to allow this",
        ),
        (["batch.scope=global"], [], "the batch doesn't grow with the workers"),
        ([], ["--seeds", "1"], "--seeds 1: at least 2"),
    ],
)
def test_what_has_no_noise_scale_is_refused_in_one_line(tmp_path, overrides, arguments, message, capsys):
    assert main([measured(tmp_path, *overrides), *arguments]) == 2
    assert message in capsys.readouterr().err
