"""A job of a sweep in a process that one of Hydra's launcher plugins has started, here or on another machine."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

from dpexp.config.experiment import ExperimentConfig
from dpexp.errors import WorkerError
from dpexp.launchers.local import LocalLauncher
from dpexp.machine.environment import describe
from dpexp.machine.exclusive import exclusive
from dpexp.measurement import job
from dpexp.measurement.user_files import fingerprint
from dpexp.processes import signals
from dpexp.report import terminal
from dpexp.session import refuse_too_many_workers


def run(config: ExperimentConfig, folder: Path) -> float:
    """Measure into `folder`; return the speedup. The command that started the sweep reports.

    The launcher may start several on one machine: each waits until no other measures. Raises DpexpError.
    """
    refuse_too_many_workers(config)
    if multiprocessing.get_start_method() not in multiprocessing.get_all_start_methods():
        multiprocessing.set_start_method("forkserver", force=True)  # joblib's own, which workers would not know
    try:
        with signals.raised(), exclusive(terminal.show_waiting):
            files = fingerprint(config)
            job.run(
                config, folder, lambda *progress: None, LocalLauncher(), describe(None), files, record_bad_input=True
            )
    except signals.Interrupted as stop:
        raise WorkerError(f"interrupted by {stop}") from stop
    return job.speedup(folder).value
