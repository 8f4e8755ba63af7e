"""Blocks: baseline and candidate in turn, each training in fresh processes."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from dpexp import kernels, launch, models, worker
from dpexp.config import ExperimentConfig
from dpexp.data.dataset import Dataset
from dpexp.environment import usable_cores
from dpexp.errors import WorkerError
from dpexp.groups import Group
from dpexp.progress import Progress
from dpexp.results import Block, Distribution, Training, WorkerTimes, finite
from dpexp.shared_memory import SharedTensors
from dpexp.stats import pairs_needed

PROBE_UPDATES = 200  # of each number of threads that is tried


def measure(
    config: ExperimentConfig,
    dataset: Dataset,
    initial: SharedTensors,
    checkpoint: Path | None,
    on_progress: Callable[[Progress], None],
    group: Group,
    earlier: Sequence[Block] = (),
) -> Iterator[Block]:
    """Each block of a job as it is finished, the discarded ones first. Raises WorkerError.

    The order within a block alternates, so that a drift of the machine's speed favours nobody. `earlier` are blocks
    of this job from before it was interrupted: they count, with what was chosen for them by a timing.
    """
    started = time.monotonic() - sum(own.launch_seconds for block in earlier for own in block.trainings.values())
    trainer = _Trainer(config, dataset, initial, group, earlier)
    if config.measurement.best_sequential:
        threads = trainer.best_threads(lambda: on_progress(Progress(1, 1, "threads of the baseline", 1, 0, 0.0)))
        if threads != config.threads_per_worker:
            trainer.variants["best"] = config.baseline(threads)
    trainer.variants |= config.counterfactuals
    blocks = list(earlier)
    wanted = _wanted(config, blocks, time.monotonic() - started)
    to_run = config.measurement.warmup + wanted - _counted(earlier)
    while (counted := _counted(blocks)) < wanted:
        done = len(blocks) - len(earlier)
        warmup = done < config.measurement.warmup  # anew after an interruption: the machine is cold again
        if config.target_accuracy is not None:  # how long it takes to get there is a matter of luck, too
            trainer.reseed((config.seed + len(blocks)) % 2**32)
        watch, trainings = group.watch(), {}
        order = sorted(trainer.variants, reverse=(done if warmup else counted) % 2 == 1)
        evaluated = not warmup and not counted  # the others repeat its updates
        for place, name in enumerate(order):
            report = _reporter(on_progress, config.epochs, (done, to_run), (name, place, len(order)))
            report(0)
            keeps = checkpoint if evaluated and name == "candidate" else None
            trainings[name] = trainer.train(name, evaluated, keeps, report)
        here = [one for own in trainings.values() for one in own.workers if group.runs_here(one.rank)]
        block = Block(
            warmup=warmup,
            order=order,
            candidate=trainings["candidate"],
            baseline=trainings.get("baseline"),
            best=trainings.get("best"),
            unsynchronized=trainings.get("unsynchronized"),
            independent=trainings.get("independent"),
            conditions=watch.conditions(sum(one.process_cpu_seconds for one in here)),
        )
        blocks.append(block)
        yield block
        wanted = max(wanted, group.of_first(_wanted(config, blocks, time.monotonic() - started)))
        to_run = config.measurement.warmup + wanted - _counted(earlier)


def _counted(blocks: Sequence[Block]) -> int:
    return sum(not block.warmup for block in blocks)


def _reporter(
    on_progress: Callable[[Progress], None], epochs: int, block: tuple[int, int], part: tuple[str, int, int]
) -> Callable[[int], None]:
    """Turns finished epochs of one training into the progress of the job; parts of a block count alike."""
    (number, blocks), (name, place, parts) = block, part

    def report(epoch: int) -> None:
        fraction = (number + (place + epoch / epochs) / parts) / blocks
        on_progress(Progress(number + 1, blocks, name, epochs, epoch, fraction))

    return report


def _wanted(config: ExperimentConfig, blocks: Sequence[Block], seconds: float) -> int:
    """How many blocks shall count, after the given ones took `seconds`: more, where that makes it precise enough."""
    measurement = config.measurement
    pilot = [block for block in blocks if not block.warmup][: measurement.repeats]
    if measurement.precision is None or len(pilot) < measurement.repeats:
        return measurement.repeats
    baselines = [block.baseline.seconds for block in pilot if block.baseline is not None]
    needed = pairs_needed(baselines, [block.candidate.seconds for block in pilot], measurement.precision)
    affordable = int(measurement.max_seconds / (seconds / len(blocks))) - (len(blocks) - _counted(blocks))
    return max(_counted(blocks), min(needed, affordable))


class _Trainer:
    """Trains the variants of one job, all on the same data and from the same initial state."""

    _best_threads: ClassVar[dict[str, int]] = {}  # of earlier jobs of this process that differ in what doesn't matter

    def __init__(
        self,
        config: ExperimentConfig,
        dataset: Dataset,
        initial: SharedTensors,
        group: Group,
        earlier: Sequence[Block],
    ) -> None:
        self._config, self._dataset, self._initial, self._group = config, dataset, initial, group
        self._earlier = earlier
        launch.wait_for_server()  # which would disturb the timing of kernels while it starts
        if earlier:
            self._kernel = earlier[0].candidate.linear_kernel
        else:
            model = models.build(config.model, dataset.input_shape, dataset.classes)
            self._kernel = group.of_first(kernels.choose(config, model))
        self.variants = dict(config.variants)

    def train(self, name: str, evaluate: bool, checkpoint: Path | None, on_epoch: Callable[[int], None]) -> Training:
        """One training of the variant `name`."""
        copies = self._config.workers if name == "independent" else None
        return self._train(self.variants[name], evaluate, checkpoint, on_epoch, name != "unsynchronized", copies)

    def reseed(self, seed: int) -> None:
        """Start from other weights, and take samples in another order; the data stay the same."""
        self.variants = {name: dataclasses.replace(variant, seed=seed) for name, variant in self.variants.items()}
        self._initial = models.initial_state(self.variants["candidate"], self._dataset)

    def best_threads(self, on_start: Callable[[], None]) -> int:
        """The number of threads with which one sequential process is fastest: powers of two and all cores tried.

        Some hundred updates each, twice; the better time counts. One answer for all jobs of this process that differ
        in workers, strategy, epochs or data size only.
        """
        if self._earlier:
            best = self._earlier[0].best
            return self._config.threads_per_worker if best is None else best.threads
        base = self._config.baseline()
        settings = dataclasses.asdict(base)
        for name in ("threads_per_worker", "epochs", "seed", "checkpoint", "target_accuracy", "measurement"):
            del settings[name]
        del settings["data"]["size"]
        key = json.dumps([settings, self._dataset.input_shape])
        if key not in self._best_threads:
            on_start()
            cores = self._group.of_first(usable_cores())
            counts = sorted({2**power for power in range(cores.bit_length())} | {cores})
            seconds = dict.fromkeys(counts, math.inf)
            for threads in [*counts, *reversed(counts)]:
                config = self._config.baseline(threads)
                epochs = math.ceil(PROBE_UPDATES / config.updates_per_epoch)
                own = self._train(dataclasses.replace(config, epochs=epochs), False, None, lambda epoch: None)
                seconds[threads] = min(seconds[threads], own.seconds / epochs)
            self._best_threads[key] = self._group.of_first(min(counts, key=lambda threads: seconds[threads]))
        return self._best_threads[key]

    def _train(
        self,
        config: ExperimentConfig,
        evaluate: bool,
        checkpoint: Path | None,
        on_epoch: Callable[[int], None],
        synchronize: bool = True,
        copies: int | None = None,
    ) -> Training:
        work = worker.Work(config, self._dataset, self._initial, self._kernel, evaluate, checkpoint, synchronize)
        return train_group(work, on_epoch, self._group, copies)


def train_group(
    work: worker.Work, on_epoch: Callable[[int], None], group: Group, copies: int | None = None
) -> Training:
    """One training by a fresh group of processes, or so many independent `copies` of it at the same time.

    Raises WorkerError, also when replicas differ.
    """
    started = time.perf_counter()
    reports = group.run(work, on_epoch) if copies is None else group.run_alone(work, copies, on_epoch)
    return Training(
        seconds=max(report.seconds for report in reports),
        epoch_losses=[
            finite(sum(sums) / work.config.train_samples / (copies or 1))
            for sums in zip(*(report.epoch_loss_sums for report in reports), strict=True)
        ],
        test_loss=None if (loss := reports[0].test_loss) is None else finite(loss),
        test_accuracy=reports[0].test_accuracy,
        epoch_seconds=[max(times) for times in zip(*(report.epoch_seconds for report in reports), strict=True)],
        epoch_accuracies=reports[0].epoch_accuracies,
        parameters_sha256=_agreed(reports) if work.synchronize and copies is None else reports[0].parameters_sha256[0],
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


def _kept(report: worker.WorkerReport) -> WorkerTimes:
    """What of a worker's report goes into a result: its rank, times and threads."""
    names = [field.name for field in dataclasses.fields(WorkerTimes) if field.name != "phases"]
    phases = {name: Distribution(**values) for name, values in report.phases.items()}
    return WorkerTimes(**{name: getattr(report, name) for name in names}, phases=phases)
