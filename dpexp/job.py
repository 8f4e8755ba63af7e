"""One job: load the data, measure, record. What fails is recorded too."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

from dpexp import environment, kernels, measurement, models, results
from dpexp.config import ExperimentConfig
from dpexp.data.dataset import load
from dpexp.doubts import doubts
from dpexp.errors import ConfigError, DataError, DivergedError, DpexpError, WorkerError
from dpexp.groups import Group
from dpexp.progress import Progress
from dpexp.results import RunResult


def run(
    config: ExperimentConfig,
    folder: Path,
    on_progress: Callable[[Progress], None],
    record_bad_input: bool,
    group: Group,
) -> None:
    """Measure `config` and write result.json into `folder`, in place of one that lies there.

    Raises what went wrong. A WorkerError is recorded as a failed result, with the blocks finished until then, a
    DivergedError as a diverged one. ConfigError and DataError are recorded with `record_bad_input`, else nothing is.
    """
    for stale in (folder / results.FILE_NAME, folder / "model.pt"):
        stale.unlink(missing_ok=True)
    started_at = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    described = environment.describe()
    blocks: list[results.Block] = []
    started = time.perf_counter()
    data_seconds = 0.0

    def record(status: Literal["ok", "failed", "diverged"], error: DpexpError | None = None) -> None:
        result = RunResult(
            format="dpexp-result",
            version=2,
            status=status,
            error=None if error is None else str(error),
            details=error.details if isinstance(error, WorkerError) else None,
            started_at=started_at,
            config=config,
            environment=described,
            data_seconds=data_seconds,
            doubts=doubts(config, described, kept) if (kept := [one for one in blocks if not one.warmup]) else [],
            blocks=blocks,
        )
        results.write(result, folder)

    checkpoint = folder / "model.pt" if config.checkpoint else None
    try:
        with group.together(config):
            _check_device(config)
            dataset = load(config)
            data_seconds = time.perf_counter() - started
            initial = models.initial_state(config, dataset)
        with dataset.tensors, initial:
            for block in measurement.measure(config, dataset, initial, checkpoint, on_progress, group):
                blocks.append(block)
        if results.diverged(blocks):
            raise DivergedError("diverged: a loss is not a finite number; try a smaller optimizer.lr")
    except (ConfigError, DataError) as error:
        if record_bad_input:
            record("failed", error)
        raise
    except WorkerError as error:
        record("failed", error)
        raise
    except DivergedError as error:
        record("diverged", error)
        raise
    record("ok")


def _check_device(config: ExperimentConfig) -> None:
    """Raise ConfigError for what torch can't do on this machine."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda: torch finds no such device here; choose device=cpu")
    if config.linear_kernel == "onednn" and not kernels.onednn_available():
        raise ConfigError("linear_kernel=onednn: this torch has no oneDNN; choose linear_kernel=auto")
