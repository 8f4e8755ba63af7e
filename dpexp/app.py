"""The command line: Hydra composes, jobs run, results are aggregated, errors become one line."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from dpexp import commandline, interrupts, resume, server, terminal
from dpexp.compose import config_folder, explain, sweep_jobs, to_experiment
from dpexp.config import ExperimentConfig
from dpexp.config_groups import CustomModelConfig
from dpexp.environment import modified_environment
from dpexp.errors import ConfigError, DpexpError, ResultError, WorkerError
from dpexp.session import FAILED, Session, status_of
from dpexp.torchrun import World

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)

_session: Session  # of the command that runs: Hydra calls us back without it


class _Stop(BaseException):
    """Carries an error of ours past Hydra, which would print it in its own way."""

    def __init__(self, error: DpexpError) -> None:
        super().__init__(error)
        self.error = error


class CheckFirst(Callback):
    """Checks every job, and claims the output folder, before the first job starts."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check a single run."""
        with _past_hydra():
            _session.begin([_checked(config)], Path(str(config.hydra.run.dir)), sweeping=False)

    def on_multirun_start(self, config: DictConfig, config_name: str | None = None, **kwargs: Any) -> None:
        """Check all jobs of a sweep. Another sweeper than Hydra's own finds its jobs as it goes."""
        with _past_hydra():
            try:
                jobs = sweep_jobs(config) if config.hydra.sweeper._target_.endswith(".BasicSweeper") else []
                composed = [hydra.compose(config_name, overrides=job) for job in jobs]
            except Exception as error:  # Hydra would warn of it and go on
                raise ConfigError(explain(error)) from error
            experiments = [_checked(one, job) for one, job in zip(composed, jobs, strict=True)]
            _session.begin(experiments, Path(str(config.hydra.sweep.dir)), sweeping=True)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Forget the job's configuration, of which Hydra would keep those of all jobs until the sweep's end."""
        job_return.cfg = job_return.hydra_cfg = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line `arguments` (default: those of the process); return the exit status."""
    global _session
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # a user's own model is found as with `python -m`
    logging.basicConfig(format="dpexp: %(message)s", level=logging.WARNING, force=True)
    with interrupts.raised():
        try:
            asked = commandline.parse(sys.argv[1:] if arguments is None else arguments)
            world = World.from_environment()
            if world is not None and asked.resumes is not None:
                raise ConfigError("resume under torchrun: other machines don't have the folder; start a new sweep")
            _session = Session(asked, world)
            try:
                return _run()
            finally:
                _session.end()
        except DpexpError as error:
            if _wants_traceback():
                raise
            terminal.show_error(str(error))
            return status_of(error)
        except interrupts.Interrupted as stop:  # before the first job, or a second one
            return stop.status
        except BrokenPipeError:  # nobody reads any more: the results are on disk
            sys.stdout = None  # Python would flush it at its end, and complain
            return FAILED


def _run() -> int:
    """Let Hydra run the jobs of the session; report, and return the exit status. Raises DpexpError."""
    run = hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="config")(_task)
    sys.argv = ["dpexp", *_session.asked.arguments]
    try:
        try:
            with _other_ranks_aside(_session.world), modified_environment(HYDRA_FULL_ERROR="1"):  # Hydra raises itself
                run()
        except BaseException as error:
            if not _is_unwritable(error):  # nor could a report be written
                _session.report()
            raise
        status = _session.report()
        _session.leave_group()
        return status
    except _Stop as stop:
        _session.leave_group()
        raise stop.error from stop
    except interrupts.Interrupted as stop:
        terminal.show_error(f"interrupted by {stop}{_session.go_on}")
        return stop.status
    except SystemExit as stop:  # of --help, of --version
        return stop.code if isinstance(stop.code, int) else FAILED if stop.code else 0
    except Exception as error:
        known = _known(error)
        if known is None:
            raise
        raise known from error


def _known(error: Exception) -> DpexpError | None:
    """What an error of Hydra's or of the system's says to the user; None where it is a bug of ours."""
    if isinstance(error, OSError) and _is_unwritable(error):
        return ResultError(f"can't write {_session.folder}: {error.strerror}{_session.go_on}")
    if _session.jobs or isinstance(error, BrokenPipeError) or _wants_traceback():
        return None
    # Before the first job it is about the command line, or the output folder that Hydra makes.
    if isinstance(error, OSError) and error.filename is not None:
        return ResultError(f"can't write the output folder {error.filename}: {error.strerror}")
    return ConfigError(explain(error))


def _is_unwritable(error: BaseException) -> bool:
    """Whether it says that the output folder takes no more; Hydra writes files there, too."""
    stopped = isinstance(error, _Stop) and isinstance(error.error, ResultError)
    return stopped or (isinstance(error, OSError) and error.errno in UNWRITABLE)


def _wants_traceback() -> bool:
    return os.environ.get("HYDRA_FULL_ERROR") == "1"


@contextlib.contextmanager
def _past_hydra() -> Iterator[None]:
    """Errors of ours leave Hydra as they are."""
    try:
        yield
    except DpexpError as error:
        raise _Stop(error) from error


@contextlib.contextmanager
def _other_ranks_aside(world: World | None) -> Iterator[None]:
    """Under torchrun rank 0 alone writes and reports; one process on each machine tells errors."""
    if world is None or world.rank == 0:
        yield
        return
    terminal.silence(errors=world.local_rank > 0)
    with tempfile.TemporaryDirectory(prefix="dpexp-") as aside:
        sys.argv += [f"hydra.run.dir={aside}", f"hydra.sweep.dir={aside}", "hydra.output_subdir=null"]
        yield


def _task(composed: DictConfig) -> None:
    """One job, in the folder that Hydra made for it. In a sweep, an error is told and the next job runs."""
    server.start_server()  # it imports torch while this process does
    from dpexp import job  # slow to import: --help and errors don't wait for it

    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    with _past_hydra():
        config = _checked(composed)
    _session.display.begin(_session.jobs)
    _session.jobs += 1
    try:
        measured = job.run(
            config,
            folder,
            _session.display.update,
            record_bad_input=_session.sweeping,
            group=_session.group,
            resume=_session.asked.resumes is not None,
        )
        _session.succeeded += 1
        _session.measured_before += not measured
    except ResultError as error:  # nor could another job be recorded
        raise _Stop(ResultError(f"{error}{_session.go_on}")) from error
    except DpexpError as error:
        see = ""
        if isinstance(error, WorkerError) and error.details and _session.writes:
            see = f" (see {folder / job.ERROR_LOG})"
        told = type(error)(f"{error}{see}")  # a new one: this one's traceback holds the job's data
        if not _session.sweeping:
            raise _Stop(told) from error
        if str(told) not in map(str, _session.errors):  # the same cause is told once
            overrides = " ".join(hydra_config.overrides.task)
            terminal.show_error(f"job {hydra_config.job.num} ({overrides}): {told}")
        _session.errors.append(told)


def _checked(composed: DictConfig, job: Sequence[str] = ()) -> ExperimentConfig:
    """The checked configuration, Hydra's own part left out. Raises ConfigError."""
    own = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    try:
        experiment = to_experiment(own)
        if _session.world is not None:
            _session.world.check(experiment)
        if _session.asked.resumes is not None and isinstance(experiment.model, CustomModelConfig):
            resume.check_code(experiment.model.builder, _session.asked.given)
        return experiment
    except ConfigError as error:
        where = f" (in the job {' '.join(job)})" if job else ""
        raise ConfigError(f"{error}{where}") from error
