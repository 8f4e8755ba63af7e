"""What a trained model is worth: loss and accuracy on the test split, and a fingerprint of its parameters."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from dpexp.data.dataset import Dataset
from dpexp.processes.heartbeat import EVALUATING, heartbeat

BATCH_SAMPLES = 1000


@torch.no_grad()
def evaluate(model: nn.Module, dataset: Dataset) -> float:
    """The accuracy (a fraction) on the whole test split."""
    model.eval()
    device = next(model.parameters()).device
    inputs, labels = (dataset.tensors[name].to(device) for name in ("test_inputs", "test_labels"))
    correct = 0
    with heartbeat.within(EVALUATING):
        for batch_inputs, batch_labels in zip(inputs.split(BATCH_SAMPLES), labels.split(BATCH_SAMPLES), strict=True):
            correct += int((model(batch_inputs).argmax(1) == batch_labels).sum())
            heartbeat.step()
    model.train()
    return correct / len(labels)


def parameters_sha256(model: nn.Module) -> str:
    """A fingerprint of all parameters, to the bit."""
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()
