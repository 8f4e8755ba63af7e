"""`resume=FOLDER`: which jobs are left of the command that wrote a folder, and what may stand beside it."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator
from pathlib import Path

from dpexp.config.arguments import CONFIRMATIONS, Request
from dpexp.config.compose import changed
from dpexp.errors import ConfigError
from dpexp.machine.environment import Environment
from dpexp.measurement.user_files import fingerprint
from dpexp.results import command
from dpexp.results.command import Command
from dpexp.results.schema import RunResult
from dpexp.results.storage import refuse_foreign


def planned(folder: Path, request: Request) -> Command:
    """The command of a folder, with the changes that the request makes. Raises ConfigError.

    Nothing that only the folder names is run: functions that make custom models, and scripts, have to be confirmed.
    """
    found = command.read(folder)
    code = set(found.code)
    allowed = {*found.overrides, *request.changes}
    if request.confirmed <= code:
        allowed |= {text for text in request.overrides if text.startswith(CONFIRMATIONS)}
    if others := [text for text in [*request.flags, *request.overrides] if text not in allowed]:
        raise ConfigError(
            f"{' '.join(others)} with resume={folder}: it finishes what was started there with "
            f"{' '.join(found.overrides) or 'the defaults'}; start a new sweep for other settings"
        )
    if missing := sorted(code - request.confirmed):
        raise ConfigError(
            f"resume={folder}: it runs the code that {' and '.join(missing)} names; "
            f"if you trust it, add {shlex.join(missing)}"
        )
    if not request.changes:
        return found
    jobs = [dataclasses.replace(job, config=changed(job.config, request.changes)) for job in found.jobs]
    return dataclasses.replace(found, jobs=jobs)


def earlier_results(
    folder: Path, found: Command, request: Request, environment: Environment
) -> Iterator[RunResult | None]:
    """Of each job the result to build on: with status "ok" nothing is left to measure. Raises ConfigError."""
    from dpexp.measurement.job import find_earlier  # imports torch: mistakes don't wait for it

    refuse_foreign(folder, environment.machine)
    for job in found.jobs:
        yield find_earlier(job.config, folder / job.folder, environment, fingerprint(job.config), request.anew)
