"""The command line: Hydra composes, jobs run, results are aggregated, errors become one line."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dpexp import launch, terminal
from dpexp.compose import config_folder, explain, to_dict, to_experiment
from dpexp.config import ExperimentConfig
from dpexp.environment import modified_environment
from dpexp.errors import ConfigError, DataError, DpexpError, ResultError

BAD_INPUT, FAILED, INTERRUPTED, TERMINATED = 2, 1, 130, 143


class _Stop(BaseException):
    """Carries an error of ours past Hydra, which would print it in its own way."""

    def __init__(self, error: DpexpError) -> None:
        super().__init__(error)
        self.error = error


class CheckFirst(Callback):
    """Checks every job before Hydra makes a folder or starts the first."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check a single run."""
        _session.begin([_checked(config)], None)

    def on_multirun_start(self, config: DictConfig, config_name: str | None = None, **kwargs: Any) -> None:
        """Check all jobs of a sweep. Another sweeper than Hydra's own finds its jobs as it goes."""
        folder = Path(str(config.hydra.sweep.dir))
        jobs = _jobs(config) if config.hydra.sweeper._target_.endswith(".BasicSweeper") else []
        experiments = []
        for job in jobs:
            try:
                composed = hydra.compose(config_name, overrides=job)
            except HydraException as error:
                raise _Stop(ConfigError(explain(error, _known_keys()))) from error
            experiments.append(_checked(composed, job))
        _session.begin(experiments, folder)


class _Session:
    """What the jobs of one command share."""

    def __init__(self) -> None:
        self.begin([], None)

    def begin(self, experiments: list[ExperimentConfig], sweep: Path | None) -> None:
        """Before the first job; `experiments` is empty where the jobs aren't known beforehand."""
        self.display = terminal.Display([_work(config) for config in experiments])
        self.sweep = sweep  # its folder, None for a single run
        self.jobs = self.failures = 0


_session = _Session()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line `arguments` (default: those of the process); return the exit status."""
    if arguments is not None:
        sys.argv = ["dpexp", *arguments]
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # a user's own model is found as with `python -m`
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    _session.begin([], None)
    logging.basicConfig(format="dpexp: %(message)s", level=logging.WARNING, force=True)
    signal.signal(signal.SIGTERM, _terminate)
    run = hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="config")(_task)
    try:
        with modified_environment(HYDRA_FULL_ERROR="1"):  # Hydra raises instead of printing
            run()
        return FAILED if _session.failures else 0
    except _Stop as stop:
        if wants_traceback:
            raise
        terminal.show_error(str(stop.error))
        return BAD_INPUT if isinstance(stop.error, ConfigError | DataError) else FAILED
    except (HydraException, OmegaConfBaseException) as error:
        if wants_traceback:
            raise
        terminal.show_error(explain(error, _known_keys()))
        return BAD_INPUT
    except OSError as error:
        if wants_traceback or error.filename is None:
            raise
        terminal.show_error(f"can't write the output folder {error.filename}: {error.strerror}")
        return FAILED
    except KeyboardInterrupt:
        terminal.show_error("interrupted")
        return INTERRUPTED
    except SystemExit as stop:  # of --help, of the argument parser, of SIGTERM
        return stop.code if isinstance(stop.code, int) else 0
    finally:
        _close()


def _task(composed: DictConfig) -> None:
    """One job, in the folder that Hydra made for it. In a sweep, an error is told and the next job runs."""
    launch.start_server()  # it imports torch while this process does
    from dpexp import job  # slow to import: --help and errors don't wait for it
    from dpexp.aggregate import aggregate

    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    config = _checked(composed)
    _session.display.begin(_session.jobs)
    _session.jobs += 1
    try:
        job.run(config, to_dict(composed), folder, _session.display.update)
    except DpexpError as error:
        if _session.sweep is None:
            raise _Stop(error) from error
        _session.failures += 1
        overrides = " ".join(hydra_config.overrides.task)
        terminal.show_error(f"job {hydra_config.job.num} ({overrides}) failed: {error}")
    else:
        if _session.sweep is None:
            _session.display.close()
            terminal.show_report(aggregate([folder]), [folder / "result.json"])


def _close() -> None:
    """After the last job: aggregate what a sweep has measured, however it ended."""
    _session.display.close()
    if _session.sweep is None or not _session.jobs:
        return

    from dpexp.report import write_report

    folder = _session.sweep
    try:
        written = write_report([folder], folder)
    except ResultError as error:
        terminal.show_error(str(error))
        return
    terminal.show_report(written.summary, written.paths)
    if _session.failures:
        terminal.show_error(f"{_session.failures} of {_session.jobs} jobs failed; {written.csv} lists them")


def _checked(composed: DictConfig, job: Sequence[str] = ()) -> ExperimentConfig:
    """The checked configuration, Hydra's own part left out. Raises _Stop with a ConfigError."""
    own = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    try:
        return to_experiment(own)
    except ConfigError as error:
        where = f" (in the job {' '.join(job)})" if job else ""
        raise _Stop(ConfigError(f"{error}{where}")) from error


def _jobs(config: DictConfig) -> list[list[str]]:
    """The overrides of each job of Hydra's basic sweeper, in its order."""
    overrides = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    overrides += config.hydra.overrides.task
    parsed = OverridesParser.create().parse_overrides(overrides)
    return BasicSweeper.split_arguments(parsed, None)[0]


def _work(config: ExperimentConfig) -> float:
    """Samples that a job visits: what its share of the progress bar is."""
    variants = [config, config.baseline()] if config.measurement.baseline == "paired" else [config]
    blocks = config.measurement.warmup + config.measurement.repeats
    return float(blocks * config.epochs * sum(variant.train_samples for variant in variants))


def _known_keys() -> list[str]:
    """All keys of the default configuration and of every group's choices, for suggestions."""
    keys = set()
    for path in config_folder().rglob("*.yaml"):
        group = path.parent.relative_to(config_folder()).as_posix()
        loaded = OmegaConf.load(path)
        assert isinstance(loaded, DictConfig)
        prefix = "" if group in (".", "experiment") else f"{group}."
        keys |= {prefix + str(key) for key in loaded if key not in ("defaults", "hydra")}
        keys |= {f"batch.{key}" for key in loaded.get("batch", {})}
    return sorted(keys)


def _terminate(*_: object) -> NoReturn:
    """SIGTERM unwinds like Ctrl-C, so that no worker outlives this process."""
    raise SystemExit(TERMINATED)
