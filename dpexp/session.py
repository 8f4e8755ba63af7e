"""The jobs of one command: the folder that they write to, the launcher that they share, and their outcome."""

from __future__ import annotations

import math
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from dpexp import resume, trackers
from dpexp.config.arguments import Request
from dpexp.config.experiment import ExperimentConfig
from dpexp.config.strategies import ScriptConfig
from dpexp.errors import ConfigError, DataError, DpexpError, ResultError, TrackerError, WorkerError
from dpexp.files import Claim
from dpexp.launchers.torchrun_environment import TorchrunEnvironment
from dpexp.machine.environment import describe, usable_cores
from dpexp.machine.exclusive import acquire
from dpexp.measurement.user_files import fingerprint
from dpexp.processes import fork_server
from dpexp.report import terminal
from dpexp.results import command
from dpexp.results.command import Command

if TYPE_CHECKING:
    from dpexp.analysis.row import Row
    from dpexp.analysis.table import Summary
    from dpexp.launchers.local import LocalLauncher
    from dpexp.launchers.torchrun_controller import TorchrunController
    from dpexp.results.schema import RunResult

BAD_INPUT, FAILED = 2, 1  # exit statuses


class Session:
    """One command, from its arguments to its exit status."""

    def __init__(self, request: Request, torchrun: TorchrunEnvironment | None, imports: Iterable[str] = ()) -> None:
        """`imports` are what workers of later commands in this process may need, beside those of this one."""
        self.request = request
        self.torchrun = torchrun
        self._imports = imports
        self.folder: Path | None = None  # as soon as it is claimed
        self.jobs = 0  # that have started
        self.delegated = False  # whether a launcher of Hydra's runs the jobs in other processes, perhaps elsewhere
        self._command = command.planned([], [], sweep=False)
        self._display = terminal.Display()
        self._succeeded = self._measured_before = 0
        self._errors: list[DpexpError] = []
        self._measured: list[tuple[ExperimentConfig, Path]] = []  # by this command, with their folders
        self._launcher: LocalLauncher | None = None
        self._controller: TorchrunController | None = None  # the launcher, under torchrun
        self._user_files: list[dict[str, str]] = []  # of each planned job, as they were when the command started
        self._earlier: list[RunResult | None] = []  # of each planned job: the result to build on
        self._environment = describe(None if torchrun is None else torchrun.local_world_size)
        self._claim: Claim | None = None
        self._machine: socket.socket | None = None  # the lock of all that measure on it

    def connect(self) -> None:
        """Under torchrun: meet the other ranks. Raises ConfigError."""
        if self.torchrun is not None:
            from dpexp.launchers.torchrun_controller import TorchrunController  # imports torch

            self._launcher = self._controller = TorchrunController(self.torchrun, self.request.arguments)
            self._controller.meet()

    def check(self, config: ExperimentConfig) -> None:
        """Raise ConfigError for a job that this command can't run."""
        if self._controller is not None:
            self._controller.check(config)
        elif not self.delegated:
            refuse_too_many_workers(config)
        trackers.check(config.tracker)

    def begin(self, planned: Command, folder: Path) -> None:
        """Claim the output folder, and the machine, before the first job. Raises ConfigError, ResultError."""
        self._display = terminal.Display(len(planned.jobs))
        self._user_files = [fingerprint(job.config) for job in planned.jobs]
        try:
            self._claim = Claim(folder)
            if self.request.resume is None:
                command.refuse_used(folder)
                command.write(folder, planned)
            else:
                self._earlier = list(resume.earlier_results(folder, planned, self.request, self._environment))
        except BlockingIOError as error:
            raise ConfigError(f"{folder}: another dpexp is writing there; wait until it ends") from error
        except OSError as error:
            raise ResultError(f"can't write the output folder {folder}: {error.strerror}") from error
        self._command, self.folder = planned, folder
        if self.delegated:  # each job claims the machine where it runs
            self.jobs = len(planned.jobs)
            self._measured = [(job.config, folder / job.folder) for job in planned.jobs]
        else:
            self._machine = acquire(terminal.show_waiting)

    @property
    def next_config(self) -> ExperimentConfig | None:
        """The configuration of the next job, where the jobs are known beforehand."""
        return self._command.jobs[self.jobs].config if self._command.jobs else None

    def run_job(self, config: ExperimentConfig, folder: Path, overrides: list[str]) -> float:
        """Measure one job into its folder; return its speedup (for optimizing sweepers), NaN where there is none.

        In a sweep an error is shown, and kept for `report`; else it is raised.

        Raises ResultError, too, when results can't be written: nor could those of another job.
        """
        if not isinstance(config.strategy, ScriptConfig):
            jobs = [job.config for job in self._command.jobs] or [config]
            slow = [*self._imports, *(name for job in jobs for name in job.imports)]
            fork_server.start_server(dict.fromkeys(slow))  # it imports torch while this process does
        from dpexp.launchers.local import LocalLauncher
        from dpexp.measurement import job

        self._launcher = self._launcher or LocalLauncher()
        varying = [text for text in overrides if text not in self._command.common_overrides]
        number, name = self.jobs, " ".join(varying).replace("\\:", ":")  # which Hydra escapes
        self.jobs += 1
        self._display.begin(number, name)
        earlier = self._earlier[number] if self._earlier else None
        if earlier is not None and earlier.status == "ok":
            self._succeeded += 1
            self._measured_before += 1
            self._display.finish("measured before")
            return job.speedup(folder).value
        try:
            job.run(
                config,
                folder,
                self._display.update,
                self._launcher,
                self._environment,
                self._user_files[number] if self._user_files else fingerprint(config),
                record_bad_input=self._command.sweep,
                earlier=earlier,
            )
        except ResultError as error:
            raise ResultError(f"{error}{self.how_to_resume}") from error
        except DpexpError as error:
            details = isinstance(error, WorkerError) and error.details
            see = f" (see {folder / 'error.log'})" if details else ""
            shown = type(error)(f"{error}{see}")  # a new one: the traceback of this one holds the job's data
            if not self._command.sweep:
                raise shown from error
            if str(shown) not in map(str, self._errors):  # a shared cause is shown once
                terminal.show_error(f"job {number} ({name}): {shown}")
            self._errors.append(shown)
            return math.nan
        self._succeeded += 1
        self._display.finish("measured")
        self._measured.append((config, folder))
        return job.speedup(folder).value

    def track(self, summary: Summary) -> int:
        """Log each job that this command has measured with its tracker; the number of those that were not logged.

        Trackers are not waited for while something is timed. An error of theirs is shown.
        """
        rows = _rows_by_folder(summary)
        missing = 0
        for config, folder in self._measured:
            if folder.resolve() not in rows:
                continue
            try:
                trackers.log(config, rows[folder.resolve()], folder)
            except TrackerError as error:
                terminal.show_error(str(error))
                missing += 1
        return missing

    def resume_jobs(self, folder: Path) -> None:
        """Measure what the command of this folder lacks. Raises DpexpError."""
        planned = resume.planned(folder, self.request)
        for job in planned.jobs:
            trackers.check(job.config.tracker)
        self.begin(planned, folder)
        self.run_planned()

    def run_planned(self) -> None:
        """Measure all jobs, which are known, without Hydra. Raises DpexpError."""
        assert self.folder is not None
        for job in self._command.jobs:
            if self._command.sweep:
                command.describe_job(self.folder / job.folder, job)
            self.run_job(job.config, self.folder / job.folder, job.overrides)

    @property
    def how_to_resume(self) -> str:
        """How to measure what is missing, to end an error message with; "" where nothing was begun."""
        if self.folder is None or self.torchrun is not None or not self._command.jobs:
            return ""
        if self.delegated:
            return "; jobs that the launcher has started may go on"
        return f"; to finish, run: {command.hint(self.folder, self._command)}"

    def report(self) -> int:
        """After the last job: show what was measured, however the command ends; return the exit status."""
        self._display.close()
        if self.folder is None or not self.jobs:
            return 0
        from dpexp.analysis.table import aggregate  # slow to import: --help and errors don't wait for these
        from dpexp.report.writer import write_report
        from dpexp.results.storage import FILE_NAME

        if not self._command.sweep:
            if self._succeeded:
                new = [] if self._measured_before else [self.folder / FILE_NAME]
                summary = aggregate([self.folder])
                terminal.show_report(summary, new)
                return FAILED if self.track(summary) else 0
            return 0
        if len(self._errors) == self.jobs and all(status_of(error) == BAD_INPUT for error in self._errors):
            return BAD_INPUT  # nothing was measured: nothing to report
        if not self._succeeded and not self._errors and not self.delegated:
            return FAILED  # interrupted in the first job
        try:
            written = write_report([self.folder], self.folder)
        except DpexpError as error:
            terminal.show_error(str(error))
            return FAILED
        terminal.show_report(written.summary, written.paths)
        if self._measured_before:
            terminal.show_line(f"{self._measured_before} of {self.jobs} jobs had been measured before")
        failed = len(self._errors)
        if self.delegated:
            good = _rows_by_folder(written.summary)
            failed = sum(folder.resolve() not in good for _, folder in self._measured)
        if failed:
            hint = "" if self.delegated else self.how_to_resume
            terminal.show_error(f"{failed} of {self.jobs} jobs failed; {written.csv} lists them{hint}")
        return FAILED if self.track(written.summary) or failed else 0

    def end(self, status: int, error: str = "") -> None:
        """Release the folder, and let the other ranks end with the same status."""
        self._display.close()
        for held in (self._claim, self._machine):
            if held is not None:
                held.close()
        if self._launcher is not None:
            self._launcher.end(status, error)


def _rows_by_folder(summary: Summary) -> dict[Path, Row]:
    """The row of each job that was measured."""
    return {Path(name).resolve(): row for row in summary.good for name in row.job.split(" + ")}


def status_of(error: DpexpError) -> int:
    """The exit status for an error."""
    return BAD_INPUT if isinstance(error, ConfigError | DataError) else FAILED


def refuse_too_many_workers(config: ExperimentConfig) -> None:
    """Raise ConfigError for more workers, or threads of one, than make sense on this machine."""
    cores, most = usable_cores(), config.launch.max_workers_per_core
    for name, number in (("workers", config.processes), ("threads_per_worker", config.threads_per_worker)):
        if number > most * cores:
            raise ConfigError(
                f"{name}={number} on {cores} usable cores: at most {most * cores} make sense; use fewer, "
                "or set launch.max_workers_per_core"
            )
