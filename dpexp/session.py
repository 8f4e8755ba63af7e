"""The jobs of one command: the folder that they write to, the launcher that they share, and their outcome."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from dpexp.config.arguments import Request
from dpexp.config.experiment import ExperimentConfig
from dpexp.errors import ConfigError, DataError, DpexpError, ResultError, WorkerError
from dpexp.files import Claim
from dpexp.launchers.torchrun_environment import TorchrunEnvironment
from dpexp.machine.environment import describe
from dpexp.processes import fork_server
from dpexp.report import terminal
from dpexp.results import command
from dpexp.results.command import Command

if TYPE_CHECKING:
    from dpexp.launchers.local import LocalLauncher

BAD_INPUT, FAILED = 2, 1  # exit statuses


class Session:
    """One command, from its arguments to its exit status."""

    def __init__(self, request: Request, torchrun: TorchrunEnvironment | None) -> None:
        self.request = request
        self.torchrun = torchrun
        self.folder: Path | None = None  # as soon as it is claimed
        self.jobs = 0  # that have started
        self._command = command.planned([], [], sweep=False)
        self._display = terminal.Display([])
        self._succeeded = self._measured_before = 0
        self._errors: list[DpexpError] = []
        self._launcher: LocalLauncher | None = None
        self._claim: Claim | None = None

    def connect(self) -> None:
        """Under torchrun: meet the other ranks. Raises ConfigError."""
        if self.torchrun is not None:
            from dpexp.launchers.torchrun_controller import TorchrunController  # imports torch

            self._launcher = controller = TorchrunController(self.torchrun, self.request.arguments)
            controller.check_arguments()

    def check(self, config: ExperimentConfig) -> None:
        """Raise ConfigError for a job that this command can't run."""
        if self.torchrun is not None:
            self.torchrun.check(config)

    def begin(self, planned: Command, folder: Path) -> None:
        """Claim the output folder, before the first job. Raises ConfigError, ResultError."""
        self._display = terminal.Display([job.config.visited_samples for job in planned.jobs])
        try:
            self._claim = Claim(folder)
            if self.request.resume is None:
                command.write(folder, planned)
            else:
                from dpexp.results.storage import refuse_foreign  # slow to import: errors don't wait for it

                refuse_foreign(folder, describe(self._local_world_size).machine)
        except BlockingIOError as error:
            raise ConfigError(f"{folder}: another dpexp is writing there; wait until it ends") from error
        except OSError as error:
            raise ResultError(f"can't write the output folder {folder}: {error.strerror}") from error
        self._command, self.folder = planned, folder

    def run_job(self, config: ExperimentConfig, folder: Path, overrides: list[str]) -> None:
        """Measure one job into its folder. In a sweep an error is shown, and kept for `report`; else it is raised.

        Raises ResultError, too, when results can't be written: nor could those of another job.
        """
        fork_server.start_server()  # it imports torch while this process does
        from dpexp.launchers.local import LocalLauncher
        from dpexp.measurement import job

        self._launcher = self._launcher or LocalLauncher()
        number, name = self.jobs, " ".join(overrides)
        self.jobs += 1
        self._display.begin(number, name)
        try:
            measured = job.run(
                config,
                folder,
                self._display.update,
                self._launcher,
                describe(self._local_world_size),
                record_bad_input=self._command.sweep,
                resume=self.request.resume is not None,
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
            return
        self._succeeded += 1
        self._measured_before += not measured
        self._display.finish("measured" if measured else "measured before")

    def resume_jobs(self, folder: Path) -> None:
        """Measure what the folder's command lacks. Raises DpexpError."""
        planned = command.read(folder)
        self._refuse_other_settings(folder, planned)
        jobs = [dataclasses.replace(job, config=self._with_changes(job.config)) for job in planned.jobs]
        self.begin(dataclasses.replace(planned, jobs=jobs), folder)
        for job in jobs:
            if planned.sweep:
                command.describe_job(folder / job.folder, job)
            self.run_job(job.config, folder / job.folder, job.overrides)

    def _refuse_other_settings(self, folder: Path, planned: Command) -> None:
        """Raise ConfigError for arguments that change what is resumed, and for code that only the folder names."""
        allowed = {*planned.overrides, *self.request.changes}
        builders = set(planned.builders)
        others = [
            one
            for one in [*self.request.flags, *self.request.overrides]
            if one not in allowed
            and not (one.startswith("model.builder=") and self.request.confirmed_builders <= builders)
        ]
        if others:
            raise ConfigError(
                f"{' '.join(others)} with resume={folder}: it finishes what was started there with "
                f"{' '.join(planned.overrides) or 'the defaults'}; start a new sweep for other settings"
            )
        if missing := builders - self.request.confirmed_builders:
            names = ",".join(sorted(missing))
            raise ConfigError(
                f"resume={folder}: its model is made by {names}, which runs code; "
                f"if you trust it, add model.builder={names}"
            )

    def _with_changes(self, config: ExperimentConfig) -> ExperimentConfig:
        if not self.request.changes:
            return config
        from dpexp.config.compose import changed

        return changed(config, self.request.changes)

    @property
    def how_to_resume(self) -> str:
        """How to measure what is missing, to end an error message with; "" where nothing was begun."""
        if self.folder is None or self.torchrun is not None or not self._command.jobs:
            return ""
        return f"; to finish, run: {command.hint(self.folder, self._command)}"

    @property
    def _local_world_size(self) -> int | None:
        return None if self.torchrun is None else self.torchrun.local_world_size

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
                terminal.show_report(aggregate([self.folder]), [self.folder / FILE_NAME])
            return 0
        if len(self._errors) == self.jobs and all(status_of(error) == BAD_INPUT for error in self._errors):
            return BAD_INPUT  # nothing was measured: nothing to report
        try:
            written = write_report([self.folder], self.folder)
        except DpexpError as error:
            terminal.show_error(str(error))
            return FAILED
        terminal.show_report(written.summary, written.paths)
        if self._measured_before:
            terminal.show_line(f"{self._measured_before} of {self.jobs} jobs had been measured before")
        if self._errors:
            what = f"{len(self._errors)} of {self.jobs} jobs failed; {written.csv} lists them"
            terminal.show_error(f"{what}{self.how_to_resume}")
        return FAILED if self._errors else 0

    def end(self, status: int, error: str = "") -> None:
        """Release the folder, and let the other ranks end with the same status."""
        if self._claim is not None:
            self._claim.close()
        if self._launcher is not None:
            self._launcher.end(status, error)


def status_of(error: DpexpError) -> int:
    """The exit status for an error."""
    return BAD_INPUT if isinstance(error, ConfigError | DataError) else FAILED
