"""One job: load the data, measure, record. What fails, or is interrupted, is recorded too."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

from dpexp import environment, kernels, measurement, models, own_files, results
from dpexp.config import ExperimentConfig
from dpexp.data.dataset import load
from dpexp.doubts import doubts
from dpexp.errors import ConfigError, DataError, DivergedError, DpexpError, WorkerError
from dpexp.files import remove_leftovers, write_atomically
from dpexp.groups import Group
from dpexp.progress import Progress
from dpexp.results import Block, RunResult

CHECKPOINT, ERROR_LOG = "model.pt", "error.log"


def run(
    config: ExperimentConfig,
    folder: Path,
    on_progress: Callable[[Progress], None],
    record_bad_input: bool,
    group: Group,
    resume: bool = False,
) -> bool:
    """Measure `config` and write result.json into `folder`, in place of one that lies there; say whether it did.

    With `resume`, nothing is done where a good result of the same configuration lies there already, and blocks that
    an unfinished job has left are kept. From the first block on the result is an unfinished one.

    Raises what went wrong. A WorkerError is recorded as a failed result, with the blocks finished until then and its
    traceback in error.log; a DivergedError as a diverged one. ConfigError and DataError are recorded with
    `record_bad_input`, else nothing is. A ResultError says that nothing can be recorded.
    """
    described = environment.describe()
    earlier = results.read_earlier(folder, config, described) if resume else None
    if earlier is not None and config.checkpoint and not (folder / CHECKPOINT).exists():
        earlier = None  # the weights were to be kept with it
    own = own_files.sha256(config)
    changed = earlier is not None and None not in (own, earlier.own_files_sha256) and own != earlier.own_files_sha256
    if earlier is not None and earlier.status == "ok" and not changed:
        return False
    record = _Record(config, folder if group.writes else None, described, earlier)
    started = time.perf_counter()
    try:
        with group.together(config):
            _check_device(config)
            dataset = load(config)
            record.data_seconds = time.perf_counter() - started
            initial = models.initial_state(config, dataset)
        if changed:  # and now known to be of use
            record.start_anew()
        record.own_files_sha256 = own
        record.write("unfinished")  # a folder that can't be written is known before anything is measured
        checkpoint = folder / CHECKPOINT if config.checkpoint else None
        with dataset.tensors, initial:
            kept = record.blocks.copy()
            for block in measurement.measure(config, dataset, initial, checkpoint, on_progress, group, kept):
                record.add(block)
        if results.diverged(record.blocks):
            raise DivergedError("diverged: a loss is not a finite number; try a smaller optimizer.lr")
    except (ConfigError, DataError) as error:
        if record_bad_input and not changed:
            record.write("failed", error)
        elif earlier is None:
            record.remove()
        raise
    except WorkerError as error:
        record.write("failed", error)
        raise
    except DivergedError as error:
        record.write("diverged", error)
        raise
    record.write("ok")
    return True


class _Record:
    """What is known of a job so far, and its files; none where another rank writes them."""

    def __init__(
        self,
        config: ExperimentConfig,
        folder: Path | None,
        described: environment.Environment,
        earlier: RunResult | None,
    ) -> None:
        self._now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        self.blocks: list[Block] = [] if earlier is None else list(earlier.blocks)
        self.own_files_sha256 = None if earlier is None else earlier.own_files_sha256
        self.data_seconds = 0.0
        self._config, self._folder, self._described = config, folder, described
        self._started_at = self._now if earlier is None else earlier.started_at
        self._resumed_at = [] if earlier is None else [*earlier.resumed_at, self._now]
        if folder is not None:
            with results.write_errors(folder):
                remove_leftovers(folder)
                (folder / ERROR_LOG).unlink(missing_ok=True)
        if earlier is None:
            self.remove()

    def start_anew(self) -> None:
        """What lies there was measured with other files of the user's. Raises ResultError."""
        self.remove()
        self.blocks, self._started_at, self._resumed_at = [], self._now, []

    def add(self, block: Block) -> None:
        """Another finished block: whatever dies from now on, it is kept."""
        self.blocks.append(block)
        self.write("unfinished")

    def write(self, status: Literal["ok", "failed", "diverged", "unfinished"], error: DpexpError | None = None) -> None:
        """Record all. Raises ResultError."""
        if self._folder is None:
            return
        details = error.details or None if isinstance(error, WorkerError) else None
        kept = [block for block in self.blocks if not block.warmup]
        result = RunResult(
            format="dpexp-result",
            version=3,
            status=status,
            error=None if error is None else str(error),
            details=details,
            started_at=self._started_at,
            resumed_at=self._resumed_at,
            config_sha256=self._config.sha256,
            config=self._config,
            environment=self._described,
            data_seconds=self.data_seconds,
            doubts=doubts(self._config, self._described, kept) if kept else [],
            blocks=self.blocks,
            own_files_sha256=self.own_files_sha256,
        )
        results.write(result, self._folder)
        if details:
            with results.write_errors(self._folder):
                write_atomically(self._folder / ERROR_LOG, details)

    def remove(self) -> None:
        """Take back what was recorded. Raises ResultError."""
        if self._folder is None:
            return
        with results.write_errors(self._folder):
            for name in (results.FILE_NAME, CHECKPOINT):
                (self._folder / name).unlink(missing_ok=True)


def _check_device(config: ExperimentConfig) -> None:
    """Raise ConfigError for what torch can't do on this machine."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda: torch finds no such device here; choose device=cpu")
    if config.linear_kernel == "onednn" and not kernels.onednn_available():
        raise ConfigError("linear_kernel=onednn: this torch has no oneDNN; choose linear_kernel=auto")
