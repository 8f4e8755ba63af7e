"""Measure each job of a plan into its folder, then report all of them together."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from dpexp.cli import resume
from dpexp.config.compose import Job, Plan
from dpexp.config.job import check_core_limits
from dpexp.config.script import ScriptConfig
from dpexp.entry_point import hold_measurement_lock, show_error, show_line
from dpexp.errors import BAD_INPUT, FAILED, ConfigError, DpexpError, ResultError, WorkerError
from dpexp.machine.environment import Environment, current_environment
from dpexp.machine.files import lock_folder, write_atomically
from dpexp.measurement.user_files import fingerprint, refuse_edited_modules
from dpexp.processes import fork_server
from dpexp.report import terminal
from dpexp.results import storage

if TYPE_CHECKING:
    from dpexp.launchers.local import LocalLauncher
    from dpexp.results.schema import JobResult


@dataclass(frozen=True)
class JobOutcome:
    """How a job ended."""

    error: DpexpError | None = None
    measured_earlier: bool = False  # by an earlier command


@contextlib.contextmanager
def open_plan(
    plan: Plan, *, resumed: bool = False, launcher: LocalLauncher | None = None
) -> Iterator[Iterator[JobOutcome]]:
    """Lock the plan's folder and the machine while the context is open; yield the outcomes of the jobs.

    A `resumed` command builds on the results there. Raises ResultError, and ConfigError for a job that can't be
    measured here, or by `launcher` (None: a local one).
    """
    user_files = []
    for job in plan.jobs:
        try:
            check_core_limits(job.config, launcher.machines if launcher else 1)
            user_files.append(fingerprint(job.config))
            refuse_edited_modules(job.config)
            if launcher is not None:
                launcher.check(job.config)
        except ConfigError as error:
            raise ConfigError(f"{error} (in the job {plan.name(job)})" if plan.sweep else str(error)) from error
    environment = current_environment(launcher.local_world_size if launcher else None)
    with lock_folder(plan.folder):
        earlier: list[JobResult | None] = [None] * len(plan.jobs)
        if resumed:
            earlier = resume.find_earlier_results(plan, environment)
        else:
            resume.refuse_results(plan.folder)
        with hold_measurement_lock():
            yield _measure_jobs(plan, environment, user_files, earlier, launcher)


def _measure_jobs(
    plan: Plan,
    environment: Environment,
    user_files: Sequence[dict[str, str]],
    earlier: Sequence[JobResult | None],
    launcher: LocalLauncher | None,
) -> Iterator[JobOutcome]:
    """Measure one job after the other; in a sweep, show an error and continue.

    `earlier` are the results to build on; jobs whose status is "ok" are done already. Raises the error of a single run,
    and ResultError, after which no job could be recorded.
    """
    if not all(isinstance(job.config, ScriptConfig) for job in plan.jobs):
        # It imports torch in parallel with this process.
        fork_server.start_server({name for job in plan.jobs for name in job.config.table_settings.values()})
    from dpexp.launchers.local import LocalLauncher
    from dpexp.measurement.job import measure_job

    launcher = launcher or LocalLauncher()
    display = terminal.Display(len(plan.jobs))
    shown: set[str] = set()
    try:
        for number, (job, before) in enumerate(zip(plan.jobs, earlier, strict=True)):
            display.begin(number, plan.name(job))
            folder, error = plan.folder / job.folder, None
            if before is not None and before.status == "ok":
                display.finish("already measured")
                yield JobOutcome(measured_earlier=True)
                continue
            try:
                _write_job_settings(job, folder / ".hydra")
                measure_job(
                    job.config,
                    folder,
                    on_progress=display.update,
                    launcher=launcher,
                    environment=environment,
                    user_files=user_files[number],
                    record_bad_input=plan.sweep,
                    earlier=before,
                )
                display.finish("measured")
            except ResultError:
                raise
            except DpexpError as failure:
                see = f" (see {folder / 'error.log'})" if isinstance(failure, WorkerError) and failure.details else ""
                error = type(failure)(f"{failure}{see}")  # without the traceback, which keeps the job's data
                if not plan.sweep:
                    raise error from failure
                if str(error) not in shown:  # a shared cause is shown once
                    show_error(f"job {number + 1} of {len(plan.jobs)} ({plan.name(job)}): {error}")
                shown.add(str(error))
            yield JobOutcome(error)
    finally:
        display.close()


def _write_job_settings(job: Job, folder: Path) -> None:
    """Write the overrides and the configuration, as Hydra does for its jobs. Raises ResultError."""
    with storage.explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, values in (("overrides", job.overrides), ("config", job.config.settings)):
            write_atomically(folder / f"{name}.yaml", yaml.safe_dump(values, sort_keys=False))


def report(plan: Plan, done: Sequence[JobOutcome], how_to_finish: str) -> int:
    """Show the results; for a sweep, write table, figures and page, too. Returns the exit status."""
    errors = [outcome.error for outcome in done if outcome.error is not None]
    if errors and len(errors) == len(plan.jobs) and all(error.exit_status == BAD_INPUT for error in errors):
        return BAD_INPUT  # nothing was measured: nothing to report
    if not done:
        return FAILED  # interrupted in the first job
    from dpexp.analysis.table import aggregate  # slow to import: --help and errors shouldn't wait for these
    from dpexp.report.writer import write_report

    before = sum(outcome.measured_earlier for outcome in done)
    if not plan.sweep:
        terminal.show_report(aggregate([plan.folder]), [] if before else [plan.folder / storage.FILE_NAME])
        return 0
    try:
        summary, paths = write_report([plan.folder], plan.folder)
    except DpexpError as error:
        show_error(str(error))
        return FAILED
    terminal.show_report(summary, paths)
    if before:
        show_line(f"{before} of {len(plan.jobs)} jobs had already been measured")
    if errors:
        show_error(f"{len(errors)} of {len(plan.jobs)} jobs failed; see {paths[0]}{how_to_finish}")
    return FAILED if errors else 0
