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
from dpexp.phases import Recorder
from dpexp.position import REPORTING, here
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
    synchronize: bool = True  # False, a counterfactual: nobody waits within a step, so replicas may part


@dataclasses.dataclass(frozen=True)
class WorkerReport:
    """What one process measured. Process start, loading and evaluation lie outside `seconds`."""

    rank: int
    seconds: float
    cpu_seconds: float  # of all threads of this process, in that time
    process_cpu_seconds: float  # since this process was forked
    phases: dict[str, dict[str, float]]  # see phases.Recorder.summary
    startup_seconds: float  # from the parent's call until this process was ready to train
    warmup_seconds: float
    evaluation_seconds: float
    epoch_loss_sums: list[float]
    epoch_seconds: list[float]  # until the end of each; only with a target accuracy
    epoch_accuracies: list[float]  # of the test split there; rank 0's, only with a target accuracy
    threads: int
    initial_sha256: list[str]  # of each replica that this process plays
    parameters_sha256: list[str]  # the same, after the last update
    test_loss: float | None = None
    test_accuracy: float | None = None


def run(rank: int, work: Work, shared: Any, launched_seconds: float, on_epoch: Callable[[int], None]) -> WorkerReport:
    """Train as rank `rank`. `launched_seconds` is the parent's monotonic clock at the launch."""
    try:
        return _run(rank, work, shared, launched_seconds, on_epoch)
    except RuntimeError as error:
        raise strategy_class(work.config).explained(error) from error


def _run(rank: int, work: Work, shared: Any, launched_seconds: float, on_epoch: Callable[[int], None]) -> WorkerReport:
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
    strategy.set_synchronized(work.synchronize)
    if config.measurement.phases:
        strategy.recorder = Recorder()
    cpu_started = time.process_time()
    torch.manual_seed(config.seed + rank)  # each rank its own dropout masks, whatever the warm-up drew
    epoch_accuracies: list[float] = []

    def look() -> None:
        if rank == 0:
            epoch_accuracies.append(evaluate(model, work.dataset)[1])

    trained = train(config, work.dataset, strategy, on_epoch, None if config.target_accuracy is None else look)
    cpu_seconds = time.process_time() - cpu_started
    recorded = strategy.recorder.summary()
    phases = {name: recorded[name] for name in recorded if name not in strategy.untold_phases}
    started = time.perf_counter()
    test_loss, test_accuracy = evaluate(model, work.dataset) if work.evaluate and rank == 0 else (None, None)
    here.enter(REPORTING)
    if work.checkpoint is not None and rank == 0:
        buffer = io.BytesIO()
        torch.save({name: tensor.cpu().clone() for name, tensor in model.state_dict().items()}, buffer)
        write_atomically(work.checkpoint, buffer.getvalue())
    return WorkerReport(
        rank=rank,
        process_cpu_seconds=time.process_time(),
        seconds=trained.seconds,
        cpu_seconds=cpu_seconds,
        phases=phases,
        startup_seconds=startup_seconds,
        warmup_seconds=warmup_seconds,
        evaluation_seconds=time.perf_counter() - started,
        epoch_loss_sums=trained.epoch_loss_sums,
        epoch_seconds=trained.epoch_seconds,
        epoch_accuracies=epoch_accuracies,
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
