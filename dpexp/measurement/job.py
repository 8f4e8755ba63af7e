"""One job: load the data, measure, record. Failures and interruptions are recorded, too."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import torch

from dpexp.analysis.intervals import Estimate
from dpexp.analysis.speedup import paired_speedup, pairs_with_baseline
from dpexp.config.experiment import ExperimentConfig
from dpexp.config.groups import ScriptDataConfig
from dpexp.errors import ConfigError, DataError, DivergedError, WorkerError
from dpexp.launchers.local import LocalLauncher
from dpexp.machine.environment import Environment
from dpexp.measurement import loop_trainer, script_trainer
from dpexp.measurement.blocks import OnProgress, measure
from dpexp.measurement.record import CHECKPOINT, Record
from dpexp.measurement.trainer import Trainer
from dpexp.measurement.user_files import differing, fingerprint
from dpexp.models import linear_kernels
from dpexp.results import storage
from dpexp.results.schema import RunResult, diverged

Prepare = Callable[[ExperimentConfig, Path, LocalLauncher], contextlib.AbstractContextManager[Trainer]]
# Who trains, by what the data are; else, our loop does.
_PREPARED: dict[type, Prepare] = {ScriptDataConfig: script_trainer.prepared}


def prepared(
    config: ExperimentConfig, folder: Path, launcher: LocalLauncher
) -> contextlib.AbstractContextManager[Trainer]:
    """What trains the variants of a job; `folder` receives what scripts write."""
    return _PREPARED.get(type(config.data), loop_trainer.prepared)(config, folder, launcher)


def run(
    config: ExperimentConfig,
    folder: Path,
    on_progress: OnProgress,
    launcher: LocalLauncher,
    environment: Environment,
    user_files: dict[str, str],
    record_bad_input: bool,
    earlier: RunResult | None = None,
) -> None:
    """Measure `config` and write result.json into `folder`, replacing the one there.

    `user_files` is the fingerprint that the job's files must keep until it ends. The blocks of an `earlier`, unfinished
    result are kept. From the first block on the result is an unfinished one.

    Raises what went wrong. A WorkerError is recorded as a failed result, with the blocks finished until then and its
    traceback in error.log; a DivergedError as a diverged one. ConfigError and DataError are recorded with
    `record_bad_input`, else nothing is. A ResultError says that nothing can be recorded.
    """
    record = Record(config, folder, environment, user_files, earlier)
    started = time.perf_counter()
    try:
        check_machine(config)
        _check_unchanged(config, user_files)
        with prepared(config, folder, launcher) as trainer:
            record.data_seconds = time.perf_counter() - started
            record.write("unfinished")  # a folder that can't be written is found before anything is measured
            checkpoint = folder / CHECKPOINT if config.checkpoint else None
            kept = record.blocks.copy()
            for block in measure(config, trainer, checkpoint, on_progress, kept, environment.local_world_size):
                _check_unchanged(config, user_files)
                record.add(block)
        if diverged(record.blocks):
            raise DivergedError("diverged: a loss is not a finite number; try a smaller optimizer.lr")
    except (ConfigError, DataError) as error:
        if record_bad_input and not record.replaces:  # a good result stays until there is a better one
            record.write("failed", error)
        raise
    except WorkerError as error:
        record.write("failed", error)
        raise
    except DivergedError as error:
        record.write("diverged", error)
        raise
    record.write("ok")


def speedup(folder: Path) -> Estimate:
    """The speedup of a finished job; unknown without a paired baseline."""
    result = storage.read(folder / storage.FILE_NAME)
    return paired_speedup(result.config, pairs_with_baseline(result.kept()))


def find_earlier(
    config: ExperimentConfig, folder: Path, environment: Environment, user_files: dict[str, str], anew: bool
) -> RunResult | None:
    """The result in `folder` that a resumed job can build on; with status "ok" nothing is left to measure.

    Raises ConfigError where the user's files have changed since, unless they are to be measured `anew`.
    """
    earlier = storage.read_earlier(folder, config, environment)
    if earlier is None or (config.checkpoint and not (folder / CHECKPOINT).exists()):
        return None  # also when the weights, which were to be kept with it, are gone
    if names := differing(earlier.user_files, user_files):
        if anew:
            return None
        raise ConfigError(
            f"{folder}: {', '.join(names)} changed since this job was measured; "
            "restore the old files, or add anew=true to measure again what depends on them"
        )
    return earlier


def _check_unchanged(config: ExperimentConfig, user_files: dict[str, str]) -> None:
    """Raise DataError when a file was edited since the command started: each training loads the files again."""
    if names := differing(user_files, fingerprint(config)):
        raise DataError(
            f"{', '.join(names)} changed while this command was running; start it again, and edit copies meanwhile"
        )


def check_machine(config: ExperimentConfig) -> None:
    """Raise ConfigError for what torch can't do on this machine."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda: torch finds no CUDA device; set device=cpu")
    if config.linear_kernel == "onednn" and not linear_kernels.onednn_available():
        raise ConfigError("linear_kernel=onednn: this build of torch has no oneDNN; set linear_kernel=auto")
