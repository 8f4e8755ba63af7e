"""The jobs of a plan: each measured into its folder, then all reported together."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dpexp.cli import resume
from dpexp.config.compose import Job, Plan
from dpexp.config.job import JobConfig
from dpexp.config.script import ScriptConfig
from dpexp.errors import ConfigError, DpexpError, ResultError, WorkerError
from dpexp.machine.environment import Environment, describe, usable_cores
from dpexp.machine.files import Claim
from dpexp.measurement.user_files import fingerprint, refuse_edited_modules
from dpexp.processes import fork_server
from dpexp.report import terminal
from dpexp.report.command import BAD_INPUT, FAILED, measuring_alone, status_of

if TYPE_CHECKING:
    from dpexp.launchers.local import LocalLauncher
    from dpexp.results.schema import RunResult


@dataclass(frozen=True)
class Done:
    """A job that is over."""

    job: Job
    error: DpexpError | None = None
    before: bool = False  # another command had measured it


def check(config: JobConfig) -> None:
    """Raise ConfigError for a job that can't be measured here."""
    cores, most = usable_cores(), config.launch.max_workers_per_core
    for name, number in (("workers", config.processes), ("threads_per_worker", config.threads_per_worker)):
        if number > most * cores:
            raise ConfigError(
                f"{name}={number} on {cores} usable cores: at most {most * cores} make sense; use fewer, "
                "or set launch.max_workers_per_core"
            )


@contextlib.contextmanager
def named(plan: Plan, job: Job) -> Iterator[None]:
    """Within, a ConfigError says which job of a sweep it is about."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{error} (in the job {plan.name(job)})" if plan.sweep else str(error)) from error


@contextlib.contextmanager
def started(
    plan: Plan,
    words: resume.Words | None,
    anew: bool = False,
    launcher: LocalLauncher | None = None,
    local_world_size: int | None = None,
    goes_on: bool = False,
) -> Iterator[Iterator[Done]]:
    """Within, this process alone works in the plan's folder, and measures alone on this machine; the jobs.

    `words` are those of a new command, None of one that is resumed, where `anew` measures again what depends on files
    that have changed. `goes_on`: this process may measure other plans later. Raises ConfigError for a job that can't be
    measured here, ResultError.
    """
    for job in plan.jobs:
        with named(plan, job):
            check(job.config)
            if goes_on:
                refuse_edited_modules(job.config)
    environment, files = describe(local_world_size), [fingerprint(job.config) for job in plan.jobs]
    with claimed(plan.folder):
        earlier: Sequence[RunResult | None] = [None] * len(plan.jobs)
        if words is None:
            earlier = resume.earlier(plan, environment, anew)
        else:
            resume.keep(plan.folder, words)
        with measuring_alone():
            yield measured(plan, files, earlier, environment, launcher, fork_server.SOMETIMES if goes_on else ())


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Within, this process alone works in the folder. Raises ConfigError, ResultError."""
    try:
        claim = Claim(folder)
    except BlockingIOError as error:
        raise ConfigError(f"{folder}: another dpexp is writing there; wait until it ends") from error
    except OSError as error:
        raise ResultError(f"can't write the output folder {folder}: {error.strerror}") from error
    with contextlib.closing(claim):
        yield


def measured(
    plan: Plan,
    user_files: Sequence[dict[str, str]],
    earlier: Sequence[RunResult | None],
    environment: Environment,
    launcher: LocalLauncher | None,
    imports: Iterable[str],
) -> Iterator[Done]:
    """Measure one job after the other; of a sweep go on after an error, which is shown.

    `earlier` are results to build on; those with status "ok" are done already. Raises the error of a single run, and
    ResultError, after which no job could be recorded.
    """
    if not all(isinstance(job.config, ScriptConfig) for job in plan.jobs):
        slow = [*imports, *(name for job in plan.jobs for name in job.config.imports)]
        fork_server.start_server(dict.fromkeys(slow))  # it imports torch while this process does
    from dpexp.launchers.local import LocalLauncher
    from dpexp.measurement import job as measurement

    launcher = launcher or LocalLauncher()
    display = terminal.Display(len(plan.jobs))
    shown: set[str] = set()
    try:
        for number, job in enumerate(plan.jobs):
            display.begin(number, plan.name(job))
            before, folder, error = earlier[number], plan.folder / job.folder, None
            if before is not None and before.status == "ok":
                display.finish("measured before")
                yield Done(job, before=True)
                continue
            try:
                resume.describe(folder, job)
                measurement.run(
                    job.config, folder, display.update, launcher, environment, user_files[number], plan.sweep, before
                )
                display.finish("measured")
            except ResultError:
                raise
            except DpexpError as failure:
                see = f" (see {folder / 'error.log'})" if isinstance(failure, WorkerError) and failure.details else ""
                error = type(failure)(f"{failure}{see}")  # a new one: the traceback of this one holds the job's data
                if not plan.sweep:
                    raise error from failure
                if str(error) not in shown:  # a shared cause is shown once
                    terminal.show_error(f"job {number} ({plan.name(job)}): {error}")
                shown.add(str(error))
            yield Done(job, error)
    finally:
        display.close()


def report(plan: Plan, done: Sequence[Done], how_to_finish: str) -> int:
    """Show what was measured, of a sweep as table, figures and page in its folder; the exit status."""
    errors = [one.error for one in done if one.error is not None]
    if errors and len(errors) == len(plan.jobs) and all(status_of(error) == BAD_INPUT for error in errors):
        return BAD_INPUT  # nothing was measured: nothing to report
    if not done and not plan.plugins:
        return FAILED  # interrupted in the first job
    from dpexp.analysis.table import aggregate  # slow to import: --help and errors don't wait for these
    from dpexp.report.writer import write_report
    from dpexp.results.storage import FILE_NAME

    before = sum(one.before for one in done)
    if not plan.sweep:
        terminal.show_report(aggregate([plan.folder]), [] if before else [plan.folder / FILE_NAME])
        return 0
    try:
        written = write_report([plan.folder], plan.folder)
    except DpexpError as error:
        terminal.show_error(str(error))
        return FAILED
    terminal.show_report(written.summary, written.paths)
    if before:
        terminal.show_line(f"{before} of {len(plan.jobs)} jobs had been measured before")
    jobs, failed = len(plan.jobs) or len(written.summary.rows), len(errors)
    if plan.plugins:
        failed = jobs - sum(len(row.job.split(" + ")) for row in written.summary.good)
    if failed:
        terminal.show_error(f"{failed} of {jobs} jobs failed; {written.csv} lists them{how_to_finish}")
    return FAILED if failed else 0
