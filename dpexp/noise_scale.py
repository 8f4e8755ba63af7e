"""Estimate the gradient noise scale of a measured model, and how much faster it learns with more workers.

McCandlish, Kaplan, Amodei et al. 2018, "An Empirical Model of Large-Batch Training", appendix A. With the gradient of
the mean loss G and the covariance of a sample's gradient Sigma, a batch of B samples has E|G_B|^2 = |G|^2 + tr(Sigma) /
B. Data parallelism gives two batch sizes for free: each worker's, and all together. From their squared norms follow
unbiased estimates of |G|^2 and tr(Sigma), and the noise scale is tr(Sigma) / |G|^2, in samples.
"""

import dataclasses
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from dpexp.analysis.intervals import geometric_mean
from dpexp.analysis.table import Summary, summarize_measured
from dpexp.analysis.table_row import Row, at_most_samples
from dpexp.config.experiment import ExperimentConfig
from dpexp.config.groups import CustomModelConfig
from dpexp.config.strategies import PlainConfig
from dpexp.errors import ConfigError, ResultError, counted
from dpexp.measurement.user_files import changed_files, fingerprint
from dpexp.report import terminal
from dpexp.report.command import Parser, command, measuring_alone
from dpexp.train.data.dataset import Dataset, load
from dpexp.train.loop import train
from dpexp.train.models import architectures
from dpexp.train.models.initial_state import initial_state
from dpexp.train.strategies import Emulated
from dpexp.train.training_clock import Clock

PARTS = 4  # of a training, each with its noise scale, which grows as the loss falls


@command
def main(arguments: list[str]) -> int:
    """Print the noise scale, and the learning speed by workers; return the exit status."""
    parser = Parser(prog="python -m dpexp.noise_scale", description=__doc__)
    parser.add_argument("folder", type=Path, help="results of one series with batch.scope=per_worker")
    parser.add_argument("--seeds", type=int, default=4, help="number of trainings (default: 4)")
    parser.add_argument("--builder", metavar="MODULE:FUNCTION", help="for a custom model: the builder of the results")
    options = parser.parse_args(arguments)
    if options.seeds < 2:
        raise ConfigError(f"--seeds {options.seeds}: at least 2, for an interval")
    measured = summarize_measured(options.folder)
    rows = at_most_samples(measured.good)
    config, user_files = largest_job(measured, options.folder, rows)
    model = config.model
    if isinstance(model, CustomModelConfig) and model.builder != options.builder:
        raise ConfigError(
            f"these results are of model.builder={model.builder}, whose code would be run: "
            f"add --builder {model.builder} to allow this"
        )
    if names := changed_files(user_files, fingerprint(config)):
        raise ConfigError(f"{', '.join(names)} changed since {options.folder} was measured; measure again")
    with measuring_alone():
        noise_scales = scales(config, options.seeds)
    for line in lines(config, rows, noise_scales):
        terminal.show_line(line)
    return 0


def largest_job(measured: Summary, folder: Path, rows: Sequence[Row]) -> tuple[ExperimentConfig, dict[str, str]]:
    """Return the configuration of the job with the most samples and workers, and the fingerprint of its files.

    Raises ConfigError, ResultError if it has no noise scale.
    """
    if len({row.series for row in rows}) != 1:
        raise ResultError(f"{folder}: the noise scale needs one series, not {len({row.series for row in rows})}")
    if any(math.isnan(row.speedup.value) for row in rows):
        raise ResultError(f"{folder}: its speedups are unknown; measure with measurement.baseline=paired")
    largest = max(measured.jobs, key=lambda job: (job.config.data.size, job.config.workers))
    config = largest.config
    if not isinstance(config, ExperimentConfig):
        raise ConfigError("these results are of a script, whose gradients can't be computed here")
    if config.workers == 1 or config.batch.scope != "per_worker":
        raise ConfigError(
            f"workers={config.workers} with batch.scope={config.batch.scope}: the batch doesn't grow with the workers; "
            "measure workers=1,2 with batch.scope=per_worker"
        )
    return config, largest.result.user_files


def scales(config: ExperimentConfig, seeds: int) -> list[list[float]]:
    """Return for each seed the noise scale of the whole training, then those of its parts. Raises DpexpError."""
    torch.set_num_threads(config.threads_per_worker)
    of_seeds = []
    dataset = load(config)
    with dataset.tensors:
        for seed in range(config.seed, config.seed + seeds):
            norms = squared_norms(dataclasses.replace(config, seed=seed % 2**32), dataset)
            parts = [norms, *np.array_split(norms, min(PARTS, len(norms)))]
            of_seeds.append([noise_scale(part, config.local_batch_size, config.workers) for part in parts])
    return of_seeds


class _Observed(Emulated):
    """Keeps the squared norms of each step's gradients: the mean over workers, and that of the whole batch."""

    norms: list[tuple[float, float]]

    def update(self) -> None:
        """Keep the norms, then update as Emulated does."""
        gradients = [
            [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters] for parameters in self.trained
        ]
        local = sum(float(gradient.square().sum()) for of_worker in gradients for gradient in of_worker)
        whole = sum(float(sum(of_workers).square().sum()) for of_workers in zip(*gradients, strict=True))
        # A worker's gradient is weighted by its share of the batch.
        self.norms.append((local * len(gradients), whole))
        super().update()


def squared_norms(config: ExperimentConfig, dataset: Dataset) -> np.ndarray:
    """Return the squared norms of a worker's and of all gradients in each step with a whole batch, shape (steps, 2).

    Trains as `config` says, all workers in this process. Raises ConfigError.
    """
    config = dataclasses.replace(config, strategy=PlainConfig(name="emulated"), device="cpu")
    with initial_state(config, dataset) as initial:
        torch.manual_seed(config.seed)
        dtype = getattr(torch, config.dtype)
        model = architectures.build(config.model, dataset.input_shape, dataset.classes, dtype)
        strategy = _Observed(config, 0, model, initial, None)
        strategy.norms = []
        strategy.start()
        list(train(config, dataset, strategy, Clock(strategy)))
    whole_batches = config.train_samples // config.global_batch_size  # of an epoch; a smaller one may follow
    return np.array(
        [pair for number, pair in enumerate(strategy.norms) if number % config.updates_per_epoch < whole_batches]
    )


def noise_scale(norms: np.ndarray, local_batch: int, workers: int) -> float:
    """Return the noise scale in samples, from squared norms (steps, 2); infinite if noise hides the gradient."""
    local, whole = norms.mean(0).tolist()
    small, large = local_batch, local_batch * workers
    squared_gradient = (large * whole - small * local) / (large - small)
    variance = (local - whole) / (1 / small - 1 / large)
    return max(variance, 0.0) / squared_gradient if squared_gradient > 0 else math.inf


def statistical_efficiency(noise_scale: float, batch: float, baseline_batch: float) -> float:
    """Return the progress per sample relative to the baseline's batch (Qiao et al. 2021, Pollux, equation 6)."""
    return (noise_scale + baseline_batch) / (noise_scale + batch)


def lines(config: ExperimentConfig, rows: Sequence[Row], noise_scales: Sequence[Sequence[float]]) -> Iterator[str]:
    """Yield the answer, from the result of `scales`."""
    whole = [of_seed[0] for of_seed in noise_scales]
    if not all(map(math.isfinite, whole)):
        noisy = "no noise scale: the gradient is too noisy in trainings as short as these; increase data.size or epochs"
        diverged = "no noise scale: a training diverged; try a smaller optimizer.lr"
        yield diverged if any(map(math.isnan, whole)) else noisy
        return
    scale, batch = geometric_mean([max(value, 1e-9) for value in whole]), config.batch.size
    yield (
        f"gradient noise scale: {scale:,.0f} samples, from {len(noise_scales)} trainings of {config.epochs} x "
        f"{config.train_samples:,}; by quarters of the training: "
        f"{', '.join(f'{part:,.0f}' for part in np.median(noise_scales, 0)[1:])}"
    )
    gained = {}
    for row in rows:
        learned = statistical_efficiency(scale.value, row.global_batch_size or 0, batch)
        times = row.speedup.value * learned
        ratio, target = row.target_samples_ratio, f"{100 * row.target_accuracy:g} %"
        measured = f" (measured by samples to {target}: {ratio:.2f}; off by {learned / ratio:.2f} x)"
        yield (
            f"{counted(row.workers or 0, 'worker')}{'*' if row.oversubscribed else ''}, global batch "
            f"{row.global_batch_size:,}: {row.speedup.value:.2f} times the throughput x {learned:.2f} times the "
            f"progress per sample = {times:.2f} times the learning speed{'' if math.isnan(ratio) else measured}"
        )
        gained[times] = row.workers or 0
    yield f"of the measured worker counts, {counted(gained[max(gained)], 'worker')} learn fastest"
    yield (
        f"with {math.floor(scale.value / batch) + 2:,} or more workers of this batch, the progress per sample is less "
        f"than half of that in one worker's batch; with any number of workers, the learning speed is at most "
        f"{(scale.value + batch) / batch:,.1f} times that of one worker"
    )
    yield "the theory assumes the best learning rate for each batch; with a fixed one, larger batches learn more slowly"


if __name__ == "__main__":
    sys.exit(main())
