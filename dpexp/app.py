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
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from dpexp import commandline, interrupts, resume, server, terminal
from dpexp.compose import config_folder, explain, sweep_jobs, to_experiment
from dpexp.config import CustomModelConfig, ExperimentConfig
from dpexp.environment import modified_environment
from dpexp.errors import ConfigError, DataError, DpexpError, ResultError, WorkerError
from dpexp.files import Claim
from dpexp.torchrun import World

if TYPE_CHECKING:
    from dpexp import groups

BAD_INPUT, FAILED = 2, 1
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)


class _Stop(BaseException):
    """Carries an error of ours past Hydra, which would print it in its own way."""

    def __init__(self, error: DpexpError) -> None:
        super().__init__(error)
        self.error = error


class CheckFirst(Callback):
    """Checks every job, and claims the output folder, before the first job starts."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check a single run."""
        _session.begin([_checked(config)], Path(str(config.hydra.run.dir)), sweeping=False)

    def on_multirun_start(self, config: DictConfig, config_name: str | None = None, **kwargs: Any) -> None:
        """Check all jobs of a sweep. Another sweeper than Hydra's own finds its jobs as it goes."""
        try:
            jobs = sweep_jobs(config) if config.hydra.sweeper._target_.endswith(".BasicSweeper") else []
            composed = [hydra.compose(config_name, overrides=job) for job in jobs]
        except Exception as error:  # Hydra would warn of it and go on
            raise _Stop(ConfigError(explain(error))) from error
        experiments = [_checked(one, job) for one, job in zip(composed, jobs, strict=True)]
        _session.begin(experiments, Path(str(config.hydra.sweep.dir)), sweeping=True)


class _Session:
    """What the jobs of one command share."""

    def __init__(self, asked: commandline.Asked, world: World | None) -> None:
        self.asked = asked
        self.world = world  # of torchrun, where that started this process
        self.group: groups.Group | None = None  # made by the first job
        self.display = terminal.Display([])
        self.sweeping = False
        self.folder: Path | None = None  # as soon as it is claimed
        self.jobs = self.succeeded = self.measured_before = 0
        self.errors: list[DpexpError] = []
        self._claim: Claim | None = None

    def begin(self, experiments: list[ExperimentConfig], folder: Path, sweeping: bool) -> None:
        """Before the first job; `experiments` is empty where the jobs aren't known beforehand."""
        from dpexp.results import refuse_foreign  # slow to import: --help and errors don't wait for it

        self.display = terminal.Display([config.visited_samples for config in experiments])
        self.sweeping = sweeping
        try:
            self._claim = Claim(folder)
            if self.asked.resumes is None:
                resume.write(folder, self.asked.command)
            else:
                refuse_foreign(folder)
        except BlockingIOError as error:
            raise _Stop(ConfigError(f"{folder}: another dpexp works there; wait until it ends")) from error
        except DpexpError as error:
            raise _Stop(error) from error
        except OSError as error:
            raise _Stop(ResultError(f"can't write the output folder {folder}: {error.strerror}")) from error
        self.folder = folder

    def end(self) -> None:
        """After all is written."""
        if self._claim is not None:
            self._claim.close()

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes and reports."""
        return self.world is None or self.world.rank == 0

    @property
    def go_on(self) -> str:
        """How to measure what is missing, in words."""
        if self.folder is None or not self.writes or self.world is not None:
            return ""
        return f"; go on with: {resume.hint(self.folder, self.asked.command)}"


_session: _Session  # of the command that runs: Hydra calls us back without it


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line `arguments` (default: those of the process); return the exit status."""
    global _session
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # a user's own model is found as with `python -m`
    logging.basicConfig(format="dpexp: %(message)s", level=logging.WARNING, force=True)
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    with interrupts.raised():
        try:
            asked = commandline.parse(sys.argv[1:] if arguments is None else arguments)
            world = World.from_environment()
            if world is not None and asked.resumes is not None:
                raise ConfigError("resume under torchrun: other machines don't have the folder; start a new sweep")
            _session = _Session(asked, world)
            try:
                return _run()
            finally:
                _session.end()
        except DpexpError as error:
            if wants_traceback:
                raise
            terminal.show_error(str(error))
            return _status(error)
        except interrupts.Interrupted as stop:  # before the first job, or a second one
            return stop.status
        except BrokenPipeError:  # nobody reads any more: the results are on disk
            sys.stdout = None  # Python would flush it at its end, and complain
            return FAILED


def _run() -> int:
    """Let Hydra run the jobs of the session; report, and return the exit status. Raises DpexpError."""
    run = hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="config")(_task)
    sys.argv = ["dpexp", *_session.asked.arguments]
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    try:
        try:
            with _other_ranks_aside(_session.world), modified_environment(HYDRA_FULL_ERROR="1"):  # Hydra raises itself
                run()
        except BaseException as error:
            if not _is_unwritable(error):  # nor could a report be written
                _close()
            raise
        status = _close()
        _leave_group()
        return status
    except _Stop as stop:
        _leave_group()
        stopped = isinstance(stop.error, ResultError) and _session.folder is not None
        raise type(stop.error)(f"{stop.error}{_session.go_on}") if stopped else stop.error from stop
    except interrupts.Interrupted as stop:
        terminal.show_error(f"interrupted by {stop}{_session.go_on}")
        return stop.status
    except SystemExit as stop:  # of --help, of --version
        return stop.code if isinstance(stop.code, int) else FAILED if stop.code else 0
    except BrokenPipeError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and _is_unwritable(error):
            raise ResultError(f"can't write {_session.folder}: {error.strerror}{_session.go_on}") from error
        if wants_traceback or _session.jobs:  # before the first job it is about the command line; then it is our bug
            raise
        if isinstance(error, OSError) and error.filename is not None:
            raise ResultError(f"can't write the output folder {error.filename}: {error.strerror}") from error
        raise ConfigError(explain(error)) from error


def _is_unwritable(error: BaseException) -> bool:
    """Whether it says that the output folder takes no more; Hydra writes files there, too."""
    stopped = isinstance(error, _Stop) and isinstance(error.error, ResultError)
    return stopped or (isinstance(error, OSError) and error.errno in UNWRITABLE)


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
    from dpexp import groups, job  # slow to import: --help and errors don't wait for it

    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    config = _checked(composed)
    _session.display.begin(_session.jobs)
    _session.jobs += 1
    try:
        if _session.group is None:
            _session.group = groups.Group() if _session.world is None else groups.TorchrunGroup(_session.world)
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
    except DpexpError as error:
        if isinstance(error, WorkerError) and error.details and _session.writes:
            error.args = (f"{error} (see {folder / job.ERROR_LOG})",)
        if not _session.sweeping or isinstance(error, ResultError):  # nor could another job be recorded
            raise _Stop(error) from error
        if str(error) not in map(str, _session.errors):  # the same cause is told once
            overrides = " ".join(hydra_config.overrides.task)
            terminal.show_error(f"job {hydra_config.job.num} ({overrides}): {error}")
        _session.errors.append(type(error)(str(error)))  # a new one: this one's traceback holds the job's data


def _close() -> int:
    """After the last job: report what was measured, however it ended; return the exit status."""
    _session.display.close()
    folder, errors = _session.folder, _session.errors
    if folder is None or not _session.jobs or not _session.writes:
        return FAILED if errors else 0
    from dpexp.aggregate import aggregate  # slow to import: --help and errors don't wait for these
    from dpexp.report import write_report
    from dpexp.results import FILE_NAME

    if not _session.sweeping:
        if _session.succeeded:
            terminal.show_report(aggregate([folder]), [folder / FILE_NAME])
        return 0
    if len(errors) == _session.jobs and all(_status(error) == BAD_INPUT for error in errors):
        return BAD_INPUT  # nothing was measured: nothing to report
    try:
        written = write_report([folder], folder)
    except DpexpError as error:
        terminal.show_error(str(error))
        return FAILED
    terminal.show_report(written.summary, written.paths)
    if _session.measured_before:
        terminal.show_line(f"{_session.measured_before} of {_session.jobs} jobs had been measured before")
    if errors:
        what = f"{len(errors)} of {_session.jobs} jobs failed; {written.csv} lists them"
        terminal.show_error(f"{what}{_session.go_on}")
    return FAILED if errors else 0


def _leave_group() -> None:
    if _session.group is not None:
        _session.group.close()


def _status(error: DpexpError) -> int:
    return BAD_INPUT if isinstance(error, ConfigError | DataError) else FAILED


def _checked(composed: DictConfig, job: Sequence[str] = ()) -> ExperimentConfig:
    """The checked configuration, Hydra's own part left out. Raises _Stop with a ConfigError."""
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
        raise _Stop(ConfigError(f"{error}{where}")) from error
