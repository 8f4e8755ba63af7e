"""A worker process's part in one training, from its start to its report."""

import dataclasses
import hashlib
import io
import platform
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dpexp.config.built_in import BuiltInConfig
from dpexp.machine.files import write_atomically
from dpexp.phases import MAX_PHASE_STEPS
from dpexp.processes.heartbeat import EVALUATING, FINISHING, REPORTING, heartbeat
from dpexp.processes.shared_memory import SharedTensors
from dpexp.train.data.dataset import Dataset
from dpexp.train.data.sharding import epoch_order
from dpexp.train.loop import train, warm_up
from dpexp.train.models import architectures
from dpexp.train.strategies import Strategy, strategy_class
from dpexp.train.strategies.rendezvous import translate_errors
from dpexp.train.training_clock import SegmentClock, TrainingClock

EVALUATION_BATCH = 1000  # samples


@dataclasses.dataclass(frozen=True)
class TrainingSpec:
    """The task of every worker: a whole training, or a segment whose steps come in turns."""

    config: BuiltInConfig
    dataset: Dataset
    initial: SharedTensors
    checkpoint: Path | None = None
    in_turns: bool = False


@dataclasses.dataclass(frozen=True)
class WorkerReport:
    """The measurements of one process."""

    host: str
    threads: int
    gradient_bytes: int
    parameters_sha256: list[str]  # one hash per replica, after the last update
    seconds: float = 0.0  # time of a whole training, without evaluation
    epoch_loss_sums: list[float] = dataclasses.field(default_factory=list)  # of a segment, its last epoch's is partial
    epoch_accuracies: list[float] = dataclasses.field(default_factory=list)  # on the test split; rank 0 only
    test_accuracy: float | None = None
    phases: dict[str, list[float]] = dataclasses.field(default_factory=dict)  # seconds of some steps of a segment
    between_epochs_seconds: list[float] = dataclasses.field(default_factory=list)  # of a segment


@translate_errors()
def run(
    rank: int, spec: TrainingSpec, shared: Any, turn_pipe: Connection | None, notify: Callable[[Any], None]
) -> WorkerReport:
    """Train as rank `rank`. Rank 0 of a segment waits for its turns at `turn_pipe`, and reports the steps of each."""
    config = spec.config
    torch.set_num_threads(config.threads_per_worker)
    torch.manual_seed(config.seed)
    dtype = getattr(torch, config.dtype)
    model = architectures.build_model(config.model, spec.dataset.input_shape, spec.dataset.classes, dtype)
    strategy = strategy_class(config)(config, rank, model, spec.initial, shared)
    strategy.reset()
    if spec.in_turns:  # its first turns are the warm-up; here only what an epoch begins with
        epoch_order(config.train_samples, config.seed, 0)
    else:
        warm_up(config, spec.dataset, strategy)
        strategy.reset()
    torch.manual_seed(config.seed + rank)  # dropout masks that differ by rank and don't depend on the warm-up
    if spec.in_turns:
        measured = _train_in_turns(spec, strategy, turn_pipe, notify)
    else:
        measured = _train_whole(spec, strategy, model, rank)
    hashes = [parameters_sha256(replica.model) for replica in strategy.replicas]
    gradient_bytes = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    return WorkerReport(platform.node(), torch.get_num_threads(), gradient_bytes, hashes, **measured)


def _train_in_turns(
    spec: TrainingSpec, strategy: Strategy, turn_pipe: Connection | None, notify: Callable[[Any], None]
) -> dict[str, Any]:
    """Train a segment, until rank 0 is told to end; return its measurements for the report."""
    clock = SegmentClock(strategy, turn_pipe, notify)
    epoch_loss_sums = list(train(spec.config, spec.dataset, strategy, clock))
    heartbeat.begin_stage(REPORTING)
    phases = strategy.recorder.phases(MAX_PHASE_STEPS)
    return {
        "phases": {name: phases[name] for name in strategy.measured_phases},
        "epoch_loss_sums": epoch_loss_sums,
        "between_epochs_seconds": clock.between_epochs_seconds,
    }


def _train_whole(spec: TrainingSpec, strategy: Strategy, model: nn.Module, rank: int) -> dict[str, Any]:
    """Run a whole training in one piece; return its measurements for the report.

    `model` is this rank's model, as built (not wrapped).
    """
    clock, epoch_loss_sums, epoch_accuracies = TrainingClock(strategy), [], []
    for loss_sum in train(spec.config, spec.dataset, strategy, clock):
        epoch_loss_sums.append(loss_sum)
        if spec.config.target_accuracy is not None:
            clock.pause()
            if rank == 0:
                epoch_accuracies.append(evaluate(model, spec.dataset))
            clock.resume()
    heartbeat.begin_stage(FINISHING)
    strategy.barrier()
    test_accuracy = evaluate(model, spec.dataset) if rank == 0 else None
    heartbeat.begin_stage(REPORTING)
    if spec.checkpoint is not None and rank == 0:
        buffer = io.BytesIO()
        torch.save({name: tensor.clone() for name, tensor in model.state_dict().items()}, buffer)
        write_atomically(spec.checkpoint, buffer.getvalue())
    return {
        "seconds": clock.seconds,
        "epoch_loss_sums": epoch_loss_sums,
        "epoch_accuracies": epoch_accuracies,
        "test_accuracy": test_accuracy,
    }


@torch.no_grad()
def evaluate(model: nn.Module, dataset: Dataset) -> float:
    """Return the accuracy (a fraction) on the whole test split."""
    modes = {module: module.training for module in model.modules()}  # a user's model may keep some in eval mode
    model.eval()
    inputs, labels = dataset.tensors["test_inputs"], dataset.tensors["test_labels"]
    correct = 0
    with heartbeat.nested_stage(EVALUATING):
        batches = zip(inputs.split(EVALUATION_BATCH), labels.split(EVALUATION_BATCH), strict=True)
        for batch_inputs, batch_labels in batches:
            correct += int((model(batch_inputs).argmax(1) == batch_labels).sum())
            heartbeat.end_step()
    for module, mode in modes.items():
        module.training = mode
    return correct / len(labels)


def parameters_sha256(model: nn.Module) -> str:
    """Return the SHA-256 of all parameters."""
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().contiguous().numpy().data)
    return digest.hexdigest()
