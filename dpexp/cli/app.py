"""`python -m dpexp`: measure and report the jobs that its arguments describe, or finish the jobs of a folder."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from dpexp.cli import resume, runner
from dpexp.config.compose import compose, show
from dpexp.config.overrides import with_script
from dpexp.entry_point import Parser, entry_point, show_error, show_line
from dpexp.errors import FAILED, ConfigError, DpexpError, ResultError
from dpexp.launchers.torchrun_environment import TorchrunEnvironment
from dpexp.machine import signals

if TYPE_CHECKING:
    from dpexp.launchers.torchrun_tasks import TorchrunController


@entry_point
def main(arguments: list[str]) -> int:
    """Run one command line; return the exit status."""
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # a custom model is found as with `python -m`
    logging.basicConfig(format="dpexp: %(message)s", level=logging.WARNING, force=True)
    torchrun = TorchrunEnvironment.read()
    if torchrun is None:
        return _run(arguments, None)
    if torchrun.started_by_torchrun:
        signals.set_parent_death_signal(signal.SIGTERM)  # else this process would outlive torchrun
    if torchrun.rank > 0:
        from dpexp.launchers.torchrun_tasks import TorchrunAgent  # imports torch

        # One process on each machine shows errors.
        report_error = show_error if torchrun.local_rank == 0 else lambda text: None
        try:
            return TorchrunAgent(torchrun, arguments).serve(report_error)
        except signals.Interrupted as stop:  # already reported
            return stop.status
        except DpexpError as error:
            report_error(str(error))
            return error.exit_status
    return _run_as_rank_zero(torchrun, arguments)


def _run_as_rank_zero(torchrun: TorchrunEnvironment, arguments: list[str]) -> int:
    """Run the command as rank 0; the other ranks end with the same status."""
    from dpexp.launchers.torchrun_tasks import TorchrunController  # imports torch

    controller = TorchrunController(torchrun, arguments)
    status, message = FAILED, ""
    try:
        controller.channel.wait_until(controller.channel.all_joined)
        status = _run(arguments, controller)
    except DpexpError as error:
        status, message = error.exit_status, str(error)
        raise
    except signals.Interrupted as stop:
        status = stop.status
        raise
    finally:
        controller.end(status, message)
    return status


def _run(arguments: list[str], controller: TorchrunController | None) -> int:
    """Run a command without torchrun, or as rank 0; return the exit status.

    Jobs that were measured are reported even if a later one fails, unless results can't be written. Raises DpexpError.
    """
    options = _parse(with_script(arguments))
    if options.help or options.cfg:
        show_line(show(options.overrides, options.config_dir, options.help).strip())
        return 0
    plan = compose(options.overrides, options.multirun, options.config_dir)
    if options.resume:
        if controller is not None:
            raise ConfigError("resume= is not supported under torchrun")
        plan = replace(plan, folder=options.resume)
    how_to_finish = "" if controller else f"; to finish, run: {resume.resume_command(arguments, plan.folder)}"
    done: list[runner.JobOutcome] = []
    try:
        with runner.open_plan(plan, resumed=options.resume is not None, launcher=controller) as jobs:
            try:
                for outcome in jobs:
                    done.append(outcome)
            except ResultError as error:  # a report can't be written either
                raise ResultError(f"{error}{how_to_finish}") from error
            except BaseException:
                runner.report(plan, done, how_to_finish)
                raise
            return runner.report(plan, done, how_to_finish)
    except signals.Interrupted as error:
        error.args = (f"{error}{how_to_finish}",)
        raise


def _parse(arguments: list[str]) -> argparse.Namespace:
    """Parse overrides and flags, with the folder of `resume=` (None: a new command). Raises ConfigError."""
    parser = Parser(prog="dpexp", add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--cfg", "-c", choices=["job"])
    parser.add_argument("--version", action="version", version=f"dpexp {metadata.version('dpexp')}")
    try:
        options = parser.parse_intermixed_args(arguments)
    except ConfigError as error:
        words = [word.lstrip("-") for word in arguments if word.startswith("--") and "=" in word]
        hint = f" (settings have no dashes: {words[0]})" if words else ""
        if any("=" not in word and not word.startswith("-") for word in arguments):  # such as torchrun
            hint = " (a script's command follows after --)"
        raise ConfigError(f"{error}{hint}") from error
    folders = [text.removeprefix("resume=") for text in options.overrides if text.startswith("resume=")]
    options.resume = Path(folders[0]).expanduser() if folders else None
    if folders and (len(folders) > 1 or not folders[0] or not options.resume.is_dir()):
        raise ConfigError(f"resume={' resume='.join(folders)}: name the folder of one sweep or run")
    options.overrides = [text for text in options.overrides if not text.startswith("resume=")]
    return options
