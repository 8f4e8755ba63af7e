"""Blocks: the baselines and the candidate take turns, each training in fresh processes."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from dpexp.analysis.intervals import Estimate
from dpexp.analysis.speedup import paired_speedup, pairs_with_baseline
from dpexp.config.experiment import ExperimentConfig
from dpexp.launchers.local import CANDIDATE
from dpexp.measurement.best_sequential import best_threads
from dpexp.measurement.conditions import Watch
from dpexp.measurement.trainer import Trainer, Variant
from dpexp.results.schema import Block

OnProgress = Callable[[str, float], None]
"""Receives what is being trained, in words, and the fraction of the job's work that is done."""


def measure(
    config: ExperimentConfig,
    trainer: Trainer,
    checkpoint: Path | None,
    on_progress: OnProgress,
    earlier: Sequence[Block] = (),
    local_workers: int | None = None,
) -> Iterator[Block]:
    """Each block of a job as soon as it is finished, the discarded ones first. Raises WorkerError.

    The order within a block alternates, so that a drift of the machine's speed favours no variant. `earlier` are blocks
    of this job from before it was interrupted: they count, with what was chosen for them by a timing. Of the workers
    of one training, `local_workers` run on this machine (None: all).
    """
    started = time.monotonic() - sum(block.wall_seconds for block in earlier)
    trainer.get_ready(config, earlier)
    variants = _variants(config, trainer, earlier, on_progress)
    blocks, done = list(earlier), 0
    while not _enough(config, blocks, time.monotonic() - started):
        counted = _counted(blocks)
        warmup = done < config.measurement.warmup  # anew after an interruption: the machine is cold again
        if config.target_accuracy is not None:  # time to target depends on the seed, too
            variants = _reseeded(variants, (config.seed + len(blocks)) % 2**32)
            trainer.reseed(variants[CANDIDATE].config)
        watch, block_started = Watch(), time.monotonic()
        trainer.place_anew()
        order = sorted(variants, reverse=(done if warmup else counted) % 2 == 1)
        evaluate = not warmup and not counted  # later blocks repeat its updates
        report = functools.partial(_report, on_progress, config, tuple(blocks), done)
        trainings = trainer.train_in_turns(
            {name: variants[name] for name in order}, evaluate, checkpoint if evaluate else None, report
        )
        workers = [worker for training in trainings.values() for worker in training.workers]
        local = [worker for worker in workers if local_workers is None or worker.rank < local_workers]
        block = Block(
            warmup=warmup,
            order=order,
            candidate=trainings[CANDIDATE],
            baseline=trainings.get("baseline"),
            best_sequential=trainings.get("best_sequential"),
            independent=trainings.get("independent"),
            conditions=watch.conditions(sum(worker.process_cpu_seconds for worker in local)),
            wall_seconds=time.monotonic() - block_started,
        )
        blocks.append(block)
        done += 1
        yield block


def _variants(
    config: ExperimentConfig, trainer: Trainer, earlier: Sequence[Block], on_progress: OnProgress
) -> dict[str, Variant]:
    """What each block trains, by name."""
    variants = {name: Variant(variant) for name, variant in config.variants.items()}
    if config.measurement.best_sequential:
        if earlier:
            best = earlier[0].best_sequential
            threads = config.threads_per_worker if best is None else best.threads
        else:
            on_start = lambda: on_progress("looking for the best number of threads", 0.0)  # noqa: E731
            threads = best_threads(config, trainer, on_start)
        if threads != config.threads_per_worker:
            variants["best_sequential"] = Variant(config.baseline(threads))
    if config.measurement.independent_copies and config.processes > 1:
        variants["independent"] = Variant(config.worker_share(), copies=config.workers)
    return variants


def _reseeded(variants: dict[str, Variant], seed: int) -> dict[str, Variant]:
    return {
        name: dataclasses.replace(variant, config=dataclasses.replace(variant.config, seed=seed))
        for name, variant in variants.items()
    }


def _report(
    on_progress: OnProgress, config: ExperimentConfig, blocks: Sequence[Block], done: int, fraction: float
) -> None:
    """The progress of the job, from the done fraction of a block; as if no more blocks than `repeats` were needed."""
    to_run = max(config.measurement.warmup + config.measurement.repeats, done + 1)
    speedup = _speedup(config, blocks)
    known = (
        "" if math.isnan(speedup.low) else f", speedup {speedup.value:.2f} ({speedup.low:.2f} to {speedup.high:.2f})"
    )
    on_progress(f"block {done + 1}{known}", (done + fraction) / to_run)


def _speedup(config: ExperimentConfig, blocks: Sequence[Block]) -> Estimate:
    return paired_speedup(config, pairs_with_baseline([block for block in blocks if not block.warmup]))


def _counted(blocks: Sequence[Block]) -> int:
    return sum(not block.warmup for block in blocks)


def _enough(config: ExperimentConfig, blocks: Sequence[Block], seconds: float) -> bool:
    """Whether the blocks, which took so long, suffice: the speedup is precise enough, or another takes too long."""
    measurement, counted = config.measurement, _counted(blocks)
    if counted < measurement.repeats or not measurement.is_adaptive:
        return counted >= measurement.repeats
    assert measurement.precision is not None
    precise = _speedup(config, blocks).precision <= measurement.precision
    return precise or seconds + blocks[-1].wall_seconds > measurement.max_seconds
