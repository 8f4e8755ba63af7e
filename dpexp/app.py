"""The command line: Hydra composes, jobs run, results are aggregated, errors become one line."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

import dpexp
from dpexp.config import arguments as command_line
from dpexp.config.compose import compose_jobs, to_experiment
from dpexp.config.experiment import ExperimentConfig
from dpexp.config.explain import explain
from dpexp.config.yaml_files import config_folder
from dpexp.errors import ConfigError, DpexpError, ResultError, WorkerError, one_line
from dpexp.launchers.torchrun_environment import TorchrunEnvironment
from dpexp.machine.environment import modified_environment
from dpexp.processes import signals
from dpexp.report import terminal
from dpexp.results.command import planned
from dpexp.session import FAILED, Session, status_of

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)

# Of the command that runs: Hydra's callbacks don't receive it. It isn't set in processes of Hydra's launcher plugins.
_session: Session
BASIC_LAUNCHER = ".BasicLauncher"


class _Stop(BaseException):
    """Carries an error of ours past Hydra, which would print it in its own way."""

    def __init__(self, error: DpexpError) -> None:
        super().__init__(error)
        self.error = error


@contextlib.contextmanager
def _past_hydra() -> Iterator[None]:
    """Errors of ours leave Hydra unchanged."""
    try:
        yield
    except DpexpError as error:
        raise _Stop(error) from error


class CheckFirst(Callback):
    """Checks every job, and claims the output folder, before the first job starts."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check a single run."""
        with _past_hydra():
            checked = _checked(config)  # first: it explains a wrong interpolation in an override
            jobs = [(".", list(config.hydra.overrides.task), checked)]
            _session.begin(planned(_session.request.overrides, jobs, False), Path(str(config.hydra.run.dir)))

    def on_multirun_start(self, config: DictConfig, config_name: str | None = None, **kwargs: Any) -> None:
        """Check all jobs of a sweep. Another sweeper than Hydra's basic one finds its jobs as it goes."""
        with _past_hydra():
            launcher = str(config.hydra.launcher._target_)
            _session.delegated = not launcher.endswith(BASIC_LAUNCHER)
            composed = compose_jobs(config, config_name)
            if _session.delegated and (_session.torchrun is not None or not composed):
                raise ConfigError(
                    f"hydra.launcher._target_={launcher}: only with Hydra's basic sweeper, and without torchrun"
                )
            jobs = [(job.folder, job.overrides, _checked(job.composed, job.overrides)) for job in composed]
            _session.begin(planned(_session.request.overrides, jobs, True), Path(str(config.hydra.sweep.dir)))

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Forget the job's configuration, of which Hydra would keep those of all jobs until the sweep's end."""
        job_return.cfg = job_return.hydra_cfg = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line `arguments` (default: those of the process); return the exit status."""
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # a custom model is found as with `python -m`
    logging.basicConfig(format="dpexp: %(message)s", level=logging.WARNING, force=True)
    logging.root.handlers[0].setLevel(logging.WARNING)  # where Hydra's --info lowers that of the root
    with signals.raised():
        try:
            given = sys.argv[1:] if arguments is None else arguments
            if "--version" in given:
                terminal.show_line(f"dpexp {dpexp.__version__}")
                return 0
            request = command_line.parse(given)
            torchrun = TorchrunEnvironment.read()
            if torchrun is not None and torchrun.started_by_torchrun:
                signals.receive_when_parent_ends(signal.SIGTERM)  # else this process would go on without it
            if torchrun is None or torchrun.rank == 0:
                return _command(Session(request, torchrun))
            terminal.silence(errors=torchrun.local_rank > 0)  # one process on each machine shows errors
            from dpexp.launchers import torchrun_agent  # imports torch

            return torchrun_agent.serve(torchrun, request.arguments, terminal.show_error)
        except DpexpError as error:
            if _wants_traceback():
                raise
            terminal.show_error(str(error))
            return status_of(error)
        except signals.Interrupted as stop:  # before the first job, or a second one
            return stop.status
        except BrokenPipeError:  # nobody reads any more: the results are on disk
            sys.stdout = None  # Python would flush it at its end, and complain
            return FAILED


def _command(session: Session) -> int:
    """Run the jobs of a session; report, and return the exit status. Raises DpexpError."""
    global _session
    _session = session
    status, message = FAILED, ""
    try:
        session.connect()
        status = _run_and_report(session)
    except DpexpError as error:
        status, message = status_of(error), str(error)
        raise
    finally:
        session.end(status, message)
    return status


def _run_and_report(session: Session) -> int:
    try:
        try:
            if session.request.resume is not None:
                if session.torchrun is not None:
                    raise ConfigError("resume= under torchrun is not supported; start a new sweep")
                session.resume_jobs(session.request.resume)
            else:
                _run_hydra(session)
        except BaseException as error:
            if not _is_unwritable(error):  # nor could a report be written
                session.report()
            raise
        return session.report()
    except _Stop as stop:
        raise stop.error from stop
    except signals.Interrupted as stop:
        terminal.show_error(f"interrupted by {stop}{session.how_to_resume}")
        return stop.status
    except SystemExit as stop:  # of --help, of --version
        return stop.code if isinstance(stop.code, int) else FAILED if stop.code else 0
    except DpexpError:
        raise
    except Exception as error:
        known = _explained(session, error)
        if known is None:
            raise
        raise known from error


def _run_hydra(session: Session) -> None:
    """Let Hydra compose the jobs and call `_job` for each."""
    run = hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="config")(_job)
    sys.argv = ["dpexp", *session.request.arguments]
    with modified_environment(HYDRA_FULL_ERROR="1"):  # Hydra raises errors, and doesn't print them
        run()


def _job(composed: DictConfig) -> float:
    """One job, in the folder that Hydra made for it; its speedup."""
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    if "_session" not in globals() or _session.delegated:
        from dpexp import delegated  # imports torch

        return delegated.run(to_experiment(composed), folder)
    with _past_hydra():
        config = _session.next_config or _checked(composed)  # the one that was checked, where it is known
        return _session.run_job(config, folder, list(hydra_config.overrides.task))


def _checked(composed: DictConfig, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """The configuration of a job that this command can run. Raises ConfigError."""
    try:
        config = to_experiment(composed)
        _session.check(config)
    except ConfigError as error:
        where = f" (in the job {' '.join(overrides)})" if overrides else ""
        raise ConfigError(f"{error}{where}") from error
    return config


def _explained(session: Session, error: Exception) -> DpexpError | None:
    """An error of Hydra or the system in words for the user; None where it is a bug of ours."""
    if isinstance(error, OSError) and _is_unwritable(error):
        return ResultError(f"can't write {session.folder}: {error.strerror}{session.how_to_resume}")
    if session.delegated and not _wants_traceback():
        return WorkerError(f"the launcher of the jobs failed: {one_line(error)}")
    if session.jobs or isinstance(error, BrokenPipeError) or _wants_traceback():
        return None
    # Before the first job it is about the command line, or the output folder that Hydra makes.
    if isinstance(error, OSError) and error.filename is not None:
        return ResultError(f"can't write the output folder {error.filename}: {error.strerror}")
    return ConfigError(explain(error))


def _is_unwritable(error: BaseException) -> bool:
    """Whether it says that the output folder takes no more; Hydra writes files there, too."""
    if isinstance(error, _Stop):
        error = error.error
    return isinstance(error, ResultError) or (isinstance(error, OSError) and error.errno in UNWRITABLE)


def _wants_traceback() -> bool:
    return os.environ.get("HYDRA_FULL_ERROR") == "1"
