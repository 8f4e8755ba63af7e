"""One job: load the data, measure, record. What fails is recorded too."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dpexp import environment, measurement, models, results
from dpexp.config import ExperimentConfig
from dpexp.data.dataset import load
from dpexp.errors import WorkerError
from dpexp.progress import Progress
from dpexp.results import RunResult


def run(
    config: ExperimentConfig, values: dict[str, Any], folder: Path, on_progress: Callable[[Progress], None]
) -> RunResult:
    """Measure `config` (`values` is the same as plain values) and write result.json into `folder`.

    Raises ConfigError and DataError before anything is written; WorkerError after a result that says so.
    """
    started_at = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    described = environment.describe()
    started = time.perf_counter()
    dataset = load(config)
    initial = models.initial_state(config, dataset)
    data_seconds = time.perf_counter() - started
    sizes = {
        "train_samples": config.train_samples,
        "local_batch_size": config.local_batch_size,
        "global_batch_size": config.global_batch_size,
        "updates": config.updates,
        "baseline_updates": config.baseline().updates,
    }

    def record(status: str, blocks: list[results.Block], error: WorkerError | None = None) -> RunResult:
        result = RunResult(
            format="dpexp-result",
            version=1,
            status=status,  # type: ignore[arg-type]
            error=None if error is None else str(error),
            details=None if error is None else error.details,
            started_at=started_at,
            config=values,
            environment=described,
            sizes=sizes,
            data_seconds=data_seconds,
            blocks=blocks,
        )
        results.write(result, folder)
        return result

    checkpoint = folder / "model.pt" if config.checkpoint else None
    with dataset.tensors, initial:
        try:
            blocks = measurement.measure(config, dataset, initial, checkpoint, on_progress)
        except WorkerError as error:
            record("failed", [], error)
            raise
    return record("diverged" if results.diverged(blocks) else "ok", blocks)
