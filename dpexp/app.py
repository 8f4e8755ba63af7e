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
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dpexp import terminal
from dpexp.compose import config_folder, explain, to_dict, to_experiment
from dpexp.config import ExperimentConfig
from dpexp.errors import ConfigError, DataError, DpexpError
from dpexp.report import aggregate, write_report

BAD_INPUT, FAILED, INTERRUPTED, TERMINATED = 2, 1, 130, 143


class _Stop(BaseException):
    """Carries an error of ours past Hydra, which would print it in its own way."""

    def __init__(self, error: DpexpError) -> None:
        super().__init__(error)
        self.error = error


class ValidateFirst(Callback):
    """Checks a single run's configuration before Hydra makes its output folder."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Raise what is wrong with `config`."""
        _checked(config)


class SweepLauncher(BasicLauncher):
    """Runs a sweep's jobs in turn: all are checked before the first starts, all are aggregated at the end."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run every distinct job; a failure doesn't stop the others, but the sweep then fails."""
        assert self.config is not None
        assert self.hydra_context is not None
        jobs = _distinct(job_overrides)
        loader = self.hydra_context.config_loader
        configs = [_checked(loader.load_sweep_config(self.config, list(job)), job) for job in jobs]
        folder = Path(str(self.config.hydra.sweep.dir))
        _session.begin([_work(config) for config in configs])
        returns: list[JobReturn] = []
        failures = []
        with _session.display.shown():
            for index, job in enumerate(jobs):
                _session.display.begin(index)
                try:
                    returns += super().launch([job], initial_job_idx + index)
                except _Stop as stop:
                    failures.append(stop.error)
                    terminal.show_error(f"job {initial_job_idx + index} ({' '.join(job)}): {stop.error}")
        written = write_report([folder], folder)
        terminal.show_report(written.summary, [written.csv, written.page, folder / "figures"])
        if failures:
            raise _Stop(DpexpError(f"{len(failures)} of {len(jobs)} jobs failed; {written.csv} lists them"))
        return returns


class _Session:
    """What the jobs of one command share."""

    display: terminal.Display

    def begin(self, work: list[float]) -> None:
        self.display = terminal.Display(work)


_session = _Session()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line `arguments` (default: those of the process); return the exit status."""
    if arguments is not None:
        sys.argv = ["dpexp", *arguments]
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())  # a user's own model is found as with `python -m`
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing
    logging.basicConfig(format="dpexp: %(message)s", level=logging.WARNING, force=True)
    signal.signal(signal.SIGTERM, _terminate)
    Plugins.instance().register(SweepLauncher)
    run = hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="config")(_task)
    try:
        run()
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
    return 0


def _task(composed: DictConfig) -> None:
    """One job, in the folder that Hydra made for it."""
    from dpexp import job  # imports torch: --help and errors don't wait for it

    hydra_config = HydraConfig.get()
    single = hydra_config.mode == RunMode.RUN
    folder = Path(hydra_config.runtime.output_dir)
    config = _checked(composed)
    try:
        if not single:
            job.run(config, to_dict(composed), folder, _session.display.update)
            return
        _session.begin([1.0])
        with _session.display.shown():
            job.run(config, to_dict(composed), folder, _session.display.update)
        terminal.show_report(aggregate([folder]), [folder / "result.json"])
    except DpexpError as error:
        raise _Stop(error) from error


def _checked(composed: DictConfig, job: Sequence[str] = ()) -> ExperimentConfig:
    """The checked configuration, Hydra's own part left out. Raises _Stop with a ConfigError."""
    own = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    try:
        return to_experiment(own)
    except ConfigError as error:
        where = f" (in the job {' '.join(job)})" if job else ""
        raise _Stop(ConfigError(f"{error}{where}")) from error


def _distinct(job_overrides: Sequence[Sequence[str]]) -> list[list[str]]:
    """Jobs as if the last value of a key were its only one, each once.

    An experiment's own sweep and the command line may both sweep a key; Hydra then multiplies them.
    """
    jobs = [list({override.split("=")[0]: override for override in job}.values()) for job in job_overrides]
    return [job for index, job in enumerate(jobs) if job not in jobs[:index]]


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
