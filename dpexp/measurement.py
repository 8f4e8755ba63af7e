"""Blocks: baseline and candidate in turn, each training in fresh processes."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dpexp import kernels, models, worker
from dpexp.config import ExperimentConfig
from dpexp.data.dataset import Dataset
from dpexp.errors import WorkerError
from dpexp.groups import Group
from dpexp.progress import Progress
from dpexp.results import Block, Training, finite
from dpexp.shared_memory import SharedTensors


def measure(
    config: ExperimentConfig,
    dataset: Dataset,
    initial: SharedTensors,
    checkpoint: Path | None,
    on_progress: Callable[[Progress], None],
    group: Group,
) -> Iterator[Block]:
    """Each block of a job as it is finished, the discarded ones first. Raises WorkerError.

    The order within a block alternates, so that a drift of the machine's speed favours neither.
    """
    measurement, variants = config.measurement, config.variants
    model = models.build(config.model, dataset.input_shape, dataset.classes)
    linear_kernels = group.of_first({name: kernels.choose(variant, model) for name, variant in variants.items()})
    count = measurement.warmup + measurement.repeats
    total_samples, done_samples = config.visited_samples, 0
    for number in range(count):
        order = sorted(variants, reverse=number % 2 == 1)
        trainings: dict[str, Training] = {}
        for name in order:
            variant = variants[name]

            def report(epoch: int, name: str = name, number: int = number, done: int = done_samples) -> None:
                fraction = (done + epoch * variants[name].train_samples) / total_samples
                on_progress(Progress(number + 1, count, name, config.epochs, epoch, fraction))

            report(0)
            last = number == count - 1 and name == "candidate"
            work = worker.Work(
                config=variant,
                dataset=dataset,
                initial=initial,
                linear_kernel=linear_kernels[name],
                evaluate=number == measurement.warmup,
                checkpoint=checkpoint if last else None,
            )
            trainings[name] = train_group(work, report, group)
            done_samples += variant.epochs * variant.train_samples
        yield Block(number < measurement.warmup, order, trainings["candidate"], trainings.get("baseline"))


def train_group(work: worker.Work, on_epoch: Callable[[int], None], group: Group) -> Training:
    """One training by a fresh group of processes. Raises WorkerError when replicas differ, too."""
    started = time.perf_counter()
    reports = group.run(work, on_epoch)
    return Training(
        seconds=max(report.seconds for report in reports),
        epoch_losses=[
            finite(sum(sums) / work.config.train_samples)
            for sums in zip(*(report.epoch_loss_sums for report in reports), strict=True)
        ],
        test_loss=None if (loss := reports[0].test_loss) is None else finite(loss),
        test_accuracy=reports[0].test_accuracy,
        parameters_sha256=_agreed(reports),
        linear_kernel=work.linear_kernel,
        launch_seconds=time.perf_counter() - started,
        workers=[_kept(report) for report in reports],
    )


def _agreed(reports: list[worker.WorkerReport]) -> str:
    """The fingerprint that all replicas share. Raises WorkerError where they differ."""
    for when, hashes in (
        ("start", [sha for report in reports for sha in report.initial_sha256]),
        ("end", [sha for report in reports for sha in report.parameters_sha256]),
    ):
        if len(set(hashes)) > 1:
            ranks = [rank for rank, sha in enumerate(hashes) if sha != hashes[0]]
            raise WorkerError(f"replicas differ at the {when}: ranks {ranks} do not have rank 0's parameters")
    return reports[0].parameters_sha256[0]


def _kept(report: worker.WorkerReport) -> dict[str, Any]:
    """What of a worker's report goes into a result: its rank, times and threads."""
    fields = dataclasses.asdict(report)
    return {name: fields[name] for name in fields if name.endswith("seconds") or name in ("rank", "threads")}
