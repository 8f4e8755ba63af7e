"""A worker process's part in one training, from its start to its report."""

from __future__ import annotations

import dataclasses
import io
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from dpexp.config.experiment import ExperimentConfig
from dpexp.data.dataset import Dataset
from dpexp.errors import WorkerError
from dpexp.files import write_atomically
from dpexp.models import architectures, linear_kernels
from dpexp.processes.heartbeat import REPORTING, heartbeat
from dpexp.processes.recorder import NoRecorder, Recorder
from dpexp.processes.shared_memory import SharedTensors
from dpexp.strategies import strategy_class
from dpexp.training.evaluation import evaluate, parameters_sha256
from dpexp.training.loop import train, warm_up
from dpexp.training.turns import Turns

MOST_STEPS = 4096  # of a training that are reported one by one


@dataclasses.dataclass(frozen=True)
class Work:
    """What every worker of one training receives."""

    config: ExperimentConfig
    dataset: Dataset
    initial: SharedTensors
    linear_kernel: str
    evaluate: bool
    checkpoint: Path | None
    copies: int | None = None  # so many independent trainings at once


@dataclasses.dataclass(frozen=True)
class WorkerReport:
    """What one process measured. Process start, loading and evaluation are not part of `turn_seconds`."""

    rank: int
    turn_seconds: list[float]
    handover_seconds: float  # between turns, those of other trainings included
    process_cpu_seconds: float  # since this process was forked
    phases: dict[str, dict[str, float]]  # see recorder.Recorder.summary
    steps: list[list[float]]  # of whole batches: the seconds of each by phase; none where waiting can't be told apart
    partial_steps: list[float]  # of batches with fewer samples: the seconds of each
    startup_seconds: float  # from the parent's call until this process was ready to train
    warmup_seconds: float
    evaluation_seconds: float
    epoch_loss_sums: list[float]
    epoch_seconds: list[float]  # until the end of each; only with a target accuracy
    epoch_accuracies: list[float]  # of the test split there; rank 0's, only with a target accuracy
    threads: int
    initial_sha256: list[str]  # of each replica in this process
    parameters_sha256: list[str]  # the same, after the last update
    test_accuracy: float | None = None


def run(
    rank: int, work: Work, shared: Any, launched_seconds: float, gate: Connection | None, notify: Callable[[Any], None]
) -> WorkerReport:
    """Train as rank `rank`; rank 0 waits for its turns at `gate`, and notifies of that.

    `launched_seconds` is the parent's monotonic clock at the launch.
    """
    try:
        return _run(rank, work, shared, launched_seconds, gate, notify)
    except RuntimeError as error:
        raise strategy_class(work.config).explained(error) from error


def _run(
    rank: int, work: Work, shared: Any, launched_seconds: float, gate: Connection | None, notify: Callable[[Any], None]
) -> WorkerReport:
    config = work.config
    _set_threads(config.threads_per_worker)
    torch.manual_seed(config.seed)
    model = architectures.build(config.model, work.dataset.input_shape, work.dataset.classes)
    model.to(getattr(torch, config.dtype))
    linear_kernels.use(model, work.linear_kernel)
    strategy = strategy_class(config)(config, rank, model, work.initial, shared)
    strategy.start()
    startup_seconds = time.monotonic() - launched_seconds

    turns = Turns(strategy, gate, notify)
    turns.wait()
    started = time.perf_counter()
    turns.step_seconds = warm_up(config, work.dataset, strategy)
    strategy.start()
    warmup_seconds = time.perf_counter() - started

    initial = [parameters_sha256(replica.model) for replica in strategy.replicas]
    torch.manual_seed(config.seed + rank)  # dropout masks that differ by rank, whatever the warm-up drew
    epoch_accuracies: list[float] = []

    def evaluate_epoch() -> None:
        if rank == 0:
            epoch_accuracies.append(evaluate(model, work.dataset))

    recorder = Recorder() if config.measurement.phases else NoRecorder()
    evaluated = None if config.target_accuracy is None else evaluate_epoch
    trained = train(config, work.dataset, strategy, turns, recorder, evaluated)
    recorded = recorder.summary(config.updates)
    phases = {name: recorded[name] for name in recorded if name not in strategy.unmeasured_phases}
    started = time.perf_counter()
    test_accuracy = evaluate(model, work.dataset) if work.evaluate and rank == 0 else None
    heartbeat.enter(REPORTING)
    if work.checkpoint is not None and rank == 0:
        buffer = io.BytesIO()
        torch.save({name: tensor.cpu().clone() for name, tensor in model.state_dict().items()}, buffer)
        write_atomically(work.checkpoint, buffer.getvalue())
    return WorkerReport(
        rank=rank,
        process_cpu_seconds=time.process_time(),
        turn_seconds=turns.turn_seconds,
        handover_seconds=turns.handover_seconds,
        phases=phases,
        steps=recorder.steps(MOST_STEPS) if "wait" in phases else [],
        partial_steps=recorder.partial_steps(),
        startup_seconds=startup_seconds,
        warmup_seconds=warmup_seconds,
        evaluation_seconds=time.perf_counter() - started,
        epoch_loss_sums=trained.epoch_loss_sums,
        epoch_seconds=trained.epoch_seconds,
        epoch_accuracies=epoch_accuracies,
        threads=torch.get_num_threads(),
        initial_sha256=initial,
        parameters_sha256=[parameters_sha256(replica.model) for replica in strategy.replicas],
        test_accuracy=test_accuracy,
    )


def _set_threads(threads: int) -> None:
    torch.set_num_threads(threads)
    if torch.get_num_threads() != threads:
        raise WorkerError(
            f"threads_per_worker={threads}: torch uses {torch.get_num_threads()} threads regardless; set that number"
        )
