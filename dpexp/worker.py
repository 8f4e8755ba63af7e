"""What runs in each worker process, from the first line to its report."""

from __future__ import annotations

import dataclasses
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dpexp import kernels, models
from dpexp.config import ExperimentConfig
from dpexp.data.dataset import Dataset
from dpexp.errors import WorkerError
from dpexp.files import write_atomically
from dpexp.shared_memory import SharedTensors
from dpexp.strategies import strategy_class
from dpexp.training import evaluate, parameters_sha256, train, warm_up


@dataclasses.dataclass(frozen=True)
class Work:
    """What every worker of one training is told."""

    config: ExperimentConfig
    dataset: Dataset
    initial: SharedTensors
    linear_kernel: str
    evaluate: bool
    checkpoint: Path | None


@dataclasses.dataclass(frozen=True)
class WorkerReport:
    """What one process measured. Process start, loading and evaluation lie outside `seconds`."""

    rank: int
    seconds: float
    startup_seconds: float  # from the parent's call until this process was ready to train
    warmup_seconds: float
    evaluation_seconds: float
    epoch_loss_sums: list[float]
    threads: int
    initial_sha256: list[str]  # of each replica that this process plays
    parameters_sha256: list[str]  # the same, after the last update
    test_loss: float | None = None
    test_accuracy: float | None = None


def run(rank: int, work: Work, shared: Any, launched_seconds: float, on_epoch: Callable[[int], None]) -> WorkerReport:
    """Train as rank `rank`. `launched_seconds` is the parent's monotonic clock at the launch."""
    config = work.config
    _set_threads(config.threads_per_worker)
    torch.manual_seed(config.seed)
    model = models.build(config.model, work.dataset.input_shape, work.dataset.classes)
    model.to(getattr(torch, config.dtype))
    kernels.use(model, work.linear_kernel)
    strategy = strategy_class(config)(config, rank, model, work.initial, shared)
    strategy.start()
    startup_seconds = time.monotonic() - launched_seconds

    started = time.perf_counter()
    warm_up(config, work.dataset, strategy)
    strategy.start()
    warmup_seconds = time.perf_counter() - started

    initial = [parameters_sha256(replica.model) for replica in strategy.replicas]
    torch.manual_seed(config.seed + rank)  # each rank its own dropout masks, whatever the warm-up drew
    try:
        trained = train(config, work.dataset, strategy, on_epoch)
    except RuntimeError as error:
        raise strategy.explained(error) from error

    started = time.perf_counter()
    test_loss, test_accuracy = evaluate(model, work.dataset) if work.evaluate and rank == 0 else (None, None)
    if work.checkpoint is not None and rank == 0:
        buffer = io.BytesIO()
        torch.save({name: tensor.cpu().clone() for name, tensor in model.state_dict().items()}, buffer)
        write_atomically(work.checkpoint, buffer.getvalue())
    return WorkerReport(
        rank=rank,
        seconds=trained.seconds,
        startup_seconds=startup_seconds,
        warmup_seconds=warmup_seconds,
        evaluation_seconds=time.perf_counter() - started,
        epoch_loss_sums=trained.epoch_loss_sums,
        threads=torch.get_num_threads(),
        initial_sha256=initial,
        parameters_sha256=[parameters_sha256(replica.model) for replica in strategy.replicas],
        test_loss=test_loss,
        test_accuracy=test_accuracy,
    )


def _set_threads(threads: int) -> None:
    torch.set_num_threads(threads)
    if torch.get_num_threads() != threads:
        raise WorkerError(
            f"threads_per_worker={threads}: torch uses {torch.get_num_threads()} whatever is asked; choose that"
        )
