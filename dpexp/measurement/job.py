"""One job: load the data, measure, record. Failures and interruptions are recorded, too."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from dpexp.config.experiment import ExperimentConfig
from dpexp.data.dataset import load
from dpexp.errors import ConfigError, DataError, DivergedError, WorkerError
from dpexp.launchers.local import LocalLauncher
from dpexp.machine.environment import Environment
from dpexp.measurement import user_files
from dpexp.measurement.blocks import OnProgress, measure
from dpexp.measurement.record import CHECKPOINT, Record
from dpexp.models import linear_kernels
from dpexp.models.initial_state import initial_state
from dpexp.results import storage
from dpexp.results.schema import diverged


def run(
    config: ExperimentConfig,
    folder: Path,
    on_progress: OnProgress,
    launcher: LocalLauncher,
    environment: Environment,
    record_bad_input: bool,
    resume: bool = False,
) -> bool:
    """Measure `config` and write result.json into `folder`, replacing an earlier one; return whether it measured.

    With `resume`, nothing is measured where a good result of the same configuration exists already, and the blocks of
    an unfinished job are kept. From the first block on the result is an unfinished one.

    Raises what went wrong. A WorkerError is recorded as a failed result, with the blocks finished until then and its
    traceback in error.log; a DivergedError as a diverged one. ConfigError and DataError are recorded with
    `record_bad_input`, else nothing is. A ResultError says that nothing can be recorded.
    """
    earlier = storage.read_earlier(folder, config, environment) if resume else None
    if earlier is not None and config.checkpoint and not (folder / CHECKPOINT).exists():
        earlier = None  # the weights were to be kept with it
    files = user_files.sha256(config)
    changed = (
        earlier is not None and None not in (files, earlier.user_files_sha256) and files != earlier.user_files_sha256
    )
    if earlier is not None and earlier.status == "ok" and not changed:
        return False
    record = Record(config, folder, environment, earlier)
    started = time.perf_counter()
    try:
        _check_machine(config)
        dataset = load(config)
        record.data_seconds = time.perf_counter() - started
        initial = initial_state(config, dataset)
        if changed:  # and the new files can be used
            record.start_anew()
        record.user_files_sha256 = files
        record.write("unfinished")  # a folder that can't be written is found before anything is measured
        checkpoint = folder / CHECKPOINT if config.checkpoint else None
        kept = record.blocks.copy()
        with dataset.tensors, initial:
            for block in measure(
                config, dataset, initial, checkpoint, on_progress, launcher, kept, environment.local_world_size
            ):
                record.add(block)
        if diverged(record.blocks):
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


def _check_machine(config: ExperimentConfig) -> None:
    """Raise ConfigError for what torch can't do on this machine."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda: torch finds no CUDA device; set device=cpu")
    if config.linear_kernel == "onednn" and not linear_kernels.onednn_available():
        raise ConfigError("linear_kernel=onednn: this build of torch has no oneDNN; set linear_kernel=auto")
