"""The command line: Hydra composes, jobs run, results are aggregated, errors become one line."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from dpexp import launch, terminal
from dpexp.compose import config_folder, explain, to_experiment
from dpexp.config import ExperimentConfig
from dpexp.environment import modified_environment
from dpexp.errors import ConfigError, DataError, DpexpError
from dpexp.torchrun import World

if TYPE_CHECKING:
    from dpexp import groups

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
        try:
            jobs = _jobs(config) if config.hydra.sweeper._target_.endswith(".BasicSweeper") else []
            composed = [hydra.compose(config_name, overrides=job) for job in jobs]
        except Exception as error:  # Hydra would warn of it and go on
            raise _Stop(ConfigError(explain(error))) from error
        experiments = [_checked(one, job) for one, job in zip(composed, jobs, strict=True)]
        _session.begin(experiments, Path(str(config.hydra.sweep.dir)))


class _Session:
    """What the jobs of one command share; `main` begins it."""

    world: World | None = None  # of torchrun, where that started this process
    group: groups.Group | None = None  # made by the first job

    def begin(self, experiments: list[ExperimentConfig], sweep: Path | None) -> None:
        """Before the first job; `experiments` is empty where the jobs aren't known beforehand."""
        self.display = terminal.Display([config.visited_samples for config in experiments])
        self.sweep = sweep  # its folder, None for a single run
        self.jobs = 0
        self.errors: list[DpexpError] = []


_session = _Session()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line `arguments` (default: those of the process); return the exit status."""
    if arguments is not None:
        sys.argv = ["dpexp", *arguments]
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # a user's own model is found as with `python -m`
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    _session.begin([], None)
    _session.world = _session.group = None
    logging.basicConfig(format="dpexp: %(message)s", level=logging.WARNING, force=True)
    signal.signal(signal.SIGTERM, _terminate)
    run = hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="config")(_task)
    try:
        try:
            _check_flags()
            _session.world = World.from_environment()
            with _other_ranks_aside(_session.world), modified_environment(HYDRA_FULL_ERROR="1"):  # Hydra raises itself
                run()
        finally:
            status = _close()
        _leave_group()
        return status
    except _Stop as stop:
        if wants_traceback:
            raise
        terminal.show_error(str(stop.error))
        _leave_group()
        return _status(stop.error)
    except KeyboardInterrupt:
        terminal.show_error("interrupted")
        return INTERRUPTED
    except SystemExit as stop:  # of --help, of --version, of SIGTERM
        return stop.code if isinstance(stop.code, int) else FAILED if stop.code else 0
    except Exception as error:
        if wants_traceback:
            raise
        if isinstance(error, OSError) and error.filename is not None:
            terminal.show_error(f"can't write the output folder {error.filename}: {error.strerror}")
            return FAILED
        if _session.jobs:  # before the first job it is about the command line; now it is our bug
            raise
        terminal.show_error(explain(error))
        return BAD_INPUT


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


def _check_flags() -> None:
    """Refuse what Hydra's parser would refuse, in one line instead of its page of usage."""

    def refuse(message: str) -> NoReturn:
        raise _Stop(ConfigError(f"{message}; --help and --hydra-help list what there is"))

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    parser.parse_args()


def _task(composed: DictConfig) -> None:
    """One job, in the folder that Hydra made for it. In a sweep, an error is told and the next job runs."""
    launch.start_server()  # it imports torch while this process does
    from dpexp import groups, job  # slow to import: --help and errors don't wait for it
    from dpexp.aggregate import aggregate

    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    config = _checked(composed)
    sweeping = _session.sweep is not None
    _session.display.begin(_session.jobs)
    _session.jobs += 1
    try:
        if _session.group is None:
            _session.group = groups.Group() if _session.world is None else groups.TorchrunGroup(_session.world)
        job.run(config, folder, _session.display.update, record_bad_input=sweeping, group=_session.group)
        if not sweeping and _writes():
            _session.display.close()
            terminal.show_report(aggregate([folder]), [folder / "result.json"])
    except DpexpError as error:
        if not sweeping:
            raise _Stop(error) from error
        if str(error) not in map(str, _session.errors):  # the same cause is told once
            overrides = " ".join(hydra_config.overrides.task)
            terminal.show_error(f"job {hydra_config.job.num} ({overrides}): {error}")
        _session.errors.append(error)


def _close() -> int:
    """After the last job: aggregate what a sweep has measured, however it ended; return the exit status."""
    _session.display.close()
    folder, errors = _session.sweep, _session.errors
    if folder is None or not _session.jobs:
        return 0
    if not _writes():
        return FAILED if errors else 0
    if len(errors) == _session.jobs and all(_status(error) == BAD_INPUT for error in errors):
        return BAD_INPUT  # nothing was measured: nothing to report
    from dpexp.report import write_report

    try:
        written = write_report([folder], folder)
    except DpexpError as error:
        terminal.show_error(str(error))
        return FAILED
    terminal.show_report(written.summary, written.paths)
    if errors:
        terminal.show_error(f"{len(errors)} of {_session.jobs} jobs failed; {written.csv} lists them")
    return FAILED if errors else 0


def _leave_group() -> None:
    if _session.group is not None:
        _session.group.close()


def _writes() -> bool:
    """Whether this process is the one that writes and reports."""
    return _session.world is None or _session.world.rank == 0


def _status(error: DpexpError) -> int:
    return BAD_INPUT if isinstance(error, ConfigError | DataError) else FAILED


def _checked(composed: DictConfig, job: Sequence[str] = ()) -> ExperimentConfig:
    """The checked configuration, Hydra's own part left out. Raises _Stop with a ConfigError."""
    own = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    try:
        experiment = to_experiment(own)
        if _session.world is not None:
            _session.world.check(experiment)
        return experiment
    except ConfigError as error:
        where = f" (in the job {' '.join(job)})" if job else ""
        raise _Stop(ConfigError(f"{error}{where}")) from error


def _jobs(config: DictConfig) -> list[list[str]]:
    """The overrides of each job of Hydra's basic sweeper, in its order."""
    overrides = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    overrides += config.hydra.overrides.task
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    parsed = parser.parse_overrides(overrides)
    return BasicSweeper.split_arguments(parsed, None)[0]


def _terminate(*_: object) -> NoReturn:
    """SIGTERM unwinds like Ctrl-C, so that no worker outlives this process."""
    raise SystemExit(TERMINATED)
