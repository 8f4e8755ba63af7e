"""How far can the batch grow? `python -m dpexp.noise_scale FOLDER`, of a folder with results."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from dpexp.analysis.decision.verdict import at_most_samples
from dpexp.analysis.intervals import Estimate, geometric_mean
from dpexp.analysis.row import Row
from dpexp.analysis.table import measured_rows
from dpexp.cli.boundary import Parser, command
from dpexp.config.groups import CustomModelConfig
from dpexp.config.job import JobConfig
from dpexp.config.script import ScriptConfig
from dpexp.errors import ConfigError, ResultError, counted
from dpexp.machine.exclusive import exclusive
from dpexp.measurement.user_files import differing, fingerprint
from dpexp.report import terminal
from dpexp.results.jobs import read_jobs

PARTS = 4  # of a training whose noise scales are told: it grows as the loss falls


@command
def main(arguments: list[str]) -> int:
    """Print the noise scale, and what it makes of the measured speedups; return the exit status."""
    parser = Parser(
        prog="python -m dpexp.noise_scale",
        description="Estimate the gradient noise scale of a measured model, and how much faster it learns by workers.",
    )
    parser.add_argument("folder", type=Path, help="with the results of one series, batch.scope=per_worker")
    parser.add_argument("--seeds", type=int, default=4, help="trainings to estimate it from (default: 4)")
    parser.add_argument("--builder", metavar="MODULE:FUNCTION", help="of a custom model: what the folder names, again")
    options = parser.parse_args(arguments)
    if options.seeds < 2:
        raise ConfigError(f"--seeds {options.seeds}: at least 2, for an interval")
    rows = at_most_samples(measured_rows(options.folder))
    config, files = config_of(options.folder, rows)
    _confirm(config, options.builder)
    if names := differing(files, fingerprint(config)):
        raise ConfigError(f"{', '.join(names)} changed since {options.folder} was measured; measure again")
    with exclusive(terminal.show_waiting):
        found = scales(config, options.seeds)
    for line in lines(config, rows, found):
        terminal.show_line(line)
    return 0


def lines(config: JobConfig, rows: Sequence[Row], found: Sequence[Sequence[float]]) -> Iterator[str]:
    """The answer; `found` is of each seed the noise scale of the whole training, then of its parts."""
    from dpexp.noise_scale.estimate import statistical_efficiency

    whole = [of_seed[0] for of_seed in found]
    if any(map(math.isnan, whole)):
        yield "no noise scale: a training diverged; try a smaller optimizer.lr"
        return
    if not all(map(math.isfinite, whole)):
        yield "the gradient drowns in noise: no noise scale can be told from trainings as short as these"
        return
    scale, batch = geometric_mean([max(value, 1e-9) for value in whole]), config.batch.size
    parts = [sorted(of_part)[len(of_part) // 2] for of_part in list(zip(*found, strict=True))[1:]]
    yield (
        f"gradient noise scale: {_samples(scale)} ({len(found)} trainings of {config.epochs} x "
        f"{config.train_samples:,} samples); by quarters of the training: {', '.join(f'{part:,.0f}' for part in parts)}"
    )
    best: tuple[float, Row] | None = None
    for row in rows:
        learned = statistical_efficiency(scale.value, row.global_batch_size or 0, batch)
        gained = row.speedup.value * learned
        yield (
            f"{counted(row.workers or 0, 'worker')}{'*' if row.oversubscribed else ''}, global batch "
            f"{row.global_batch_size:,}: {row.speedup.value:.2f} times the samples a second x {learned:.2f}, what a "
            f"sample teaches = {gained:.2f} times as fast at learning{_measured(row, learned)}"
        )
        if best is None or gained > best[0]:
            best = gained, row
    if best is not None:
        yield f"learning is fastest with {counted(best[1].workers or 0, 'worker')} of the measured ones"
    most = (scale.value + batch) / batch
    yield (
        f"from {math.floor(scale.value / batch) + 2:,} workers of this batch on, a sample teaches less than half as "
        f"much as in one worker's batch; with any number of workers, learning gets at most {most:,.1f} times as fast"
    )
    yield "the theory assumes the best learning rate for each batch; with a fixed one, larger batches learn slower"


def _measured(row: Row, learned: float) -> str:
    """What samples to the target say of the same, where they were measured."""
    ratio = row.target.target_samples_ratio
    if math.isnan(ratio):
        return ""
    return (
        f" (measured by samples to {100 * row.target.target_accuracy:g} %: {ratio:.2f}; off by {learned / ratio:.2f} x)"
    )


def _samples(scale: Estimate) -> str:
    return f"{scale.value:,.0f} samples ({scale.low:,.0f} to {scale.high:,.0f})"


def _confirm(config: JobConfig, builder: str | None) -> None:
    """Raise ConfigError unless the user wants the code to run that the folder names."""
    if isinstance(config.model, CustomModelConfig) and config.model.builder != builder:
        raise ConfigError(
            f"these results are of model.builder={config.model.builder}, which would be run: "
            f"add --builder {config.model.builder} if that is meant"
        )


def config_of(folder: Path, rows: Sequence[Row]) -> tuple[JobConfig, dict[str, str]]:
    """The measured configuration with the most workers, and its files' fingerprint. Raises ConfigError, ResultError."""
    if len({row.series for row in rows}) != 1:
        raise ResultError(f"{folder}: the noise scale is of one series, not of {len({row.series for row in rows})}")
    if any(math.isnan(row.speedup.value) for row in rows):
        raise ResultError(f"{folder}: speedups are unknown there; measure with measurement.baseline=paired")
    jobs = [(job.config, job.result.user_files) for job in read_jobs([folder])[0] if job.result.status == "ok"]
    config, files = max(jobs, key=lambda job: (job[0].data.size, job[0].workers))
    if isinstance(config, ScriptConfig):
        raise ConfigError("these results are of a script: its gradients are not known here")
    if config.batch.sync_batchnorm:
        raise ConfigError(
            "batch.sync_batchnorm=true: a worker's gradient depends on the samples of all, so it has no noise"
        )
    if config.workers == 1 or config.batch.scope != "per_worker":
        raise ConfigError(
            f"workers={config.workers} with batch.scope={config.batch.scope}: the batch doesn't grow with the workers; "
            "measure workers=1,2 with batch.scope=per_worker"
        )
    return config, files


def scales(config: JobConfig, seeds: int) -> list[list[float]]:
    """Of each seed the noise scale of the whole training, then of its parts. Raises DpexpError."""
    import torch  # slow

    from dpexp.data.dataset import load
    from dpexp.noise_scale.estimate import observe

    torch.set_num_threads(config.threads_per_worker)
    found = []
    dataset = load(config)
    with dataset.tensors:
        for seed in range(config.seed, config.seed + seeds):
            norms = observe(dataclasses.replace(config, seed=seed % 2**32), dataset)
            bounds = [(part / PARTS, (part + 1) / PARTS) for part in range(PARTS)]
            found.append([norms.noise_scale(), *(norms.noise_scale(*ends) for ends in bounds)])
    return found


if __name__ == "__main__":
    sys.exit(main())
