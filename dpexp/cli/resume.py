"""`resume=FOLDER`, added to a command: keep what the same command measured there, and measure what is missing."""

import logging
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dpexp.config.built_in import BuiltInConfig
from dpexp.config.compose import Plan
from dpexp.config.job import JobConfig
from dpexp.config.overrides import FOLDER_KEYS, split_at_script
from dpexp.errors import ConfigError, ResultError, VersionError
from dpexp.machine.environment import Environment
from dpexp.measurement.record import CHECKPOINT, VARIES
from dpexp.measurement.user_files import changed_files, digests_of, fingerprint
from dpexp.results import storage
from dpexp.results.schema import JobResult

_log = logging.getLogger(__name__)

FOLDER_SETTINGS = tuple(f"{name}=" for name in ("resume", *FOLDER_KEYS))


def refuse_results(folder: Path) -> None:
    """Raise ConfigError if a folder already contains results, which a new command would mix with its own."""
    if any(folder.rglob(storage.FILE_NAME)):
        raise ConfigError(
            f"{folder}: it already contains results; to finish the command that wrote them, add resume={folder} to "
            "that command, or choose a new folder"
        )


def find_earlier_results(plan: Plan, environment: Environment) -> list[JobResult | None]:
    """Return the result that each job of a resumed plan can build on, see `find_earlier`.

    Raises ConfigError, also if the plan's folder contains results of other jobs.
    """
    expected = {plan.folder / job.folder / storage.FILE_NAME for job in plan.jobs}
    if others := sorted({*plan.folder.rglob(storage.FILE_NAME)} - expected):
        raise ConfigError(f"{others[0]}: it does not belong to this command; resume= needs the same command as before")
    return [find_earlier(job.config, plan.folder / job.folder, environment) for job in plan.jobs]


def find_earlier(config: JobConfig, folder: Path, environment: Environment) -> JobResult | None:
    """Return the result in `folder` that a resumed job builds on; if its status is "ok", nothing is left to measure.

    None if there is none, or it can't be built on: it has no block, has diverged, or was measured with other code.
    Raises ConfigError for a result of another configuration, version or machine, or if the user's files have changed
    since.
    """
    path = folder / storage.FILE_NAME
    try:
        result = storage.read(path)
    except VersionError as error:
        raise ConfigError(f"{error}; resume it with that version, or start a new sweep") from error
    except ResultError:  # missing or damaged
        return None
    if result.config_sha256 != config.sha256:
        raise ConfigError(f"{path} was measured with other settings; resume= needs the same command as before")
    if result.environment.machine != environment.machine:
        raise ConfigError(
            f"{path} was measured on {result.environment.machine}, but this is {environment.machine}: "
            "times from two machines must not be mixed; resume there, or start a new sweep here"
        )
    is_checkpoint_missing = (
        isinstance(config, BuiltInConfig) and config.checkpoint and not (folder / CHECKPOINT).exists()
    )
    if is_checkpoint_missing and result.status != "diverged":
        result = replace(result, status="unfinished", trainings={})  # a whole training writes it
    same_code = result.environment.code_sha256 == environment.code_sha256
    if result.status == "diverged" or not result.blocks:
        return None
    if result.status != "ok" and not same_code:
        _log.warning("%s: its blocks are measured again, since dpexp's code has changed", folder)
        return None
    files = fingerprint(config)
    files |= digests_of(result.user_files.keys() - files.keys())
    files |= {name: VARIES for name, sha256 in result.user_files.items() if sha256 == VARIES}
    if names := changed_files(result.user_files, files):
        raise ConfigError(
            f"{folder}: {', '.join(names)} changed since this job was measured; "
            "restore the old files, or measure again into a new folder"
        )
    return result


def resume_command(arguments: Sequence[str], folder: Path) -> str:
    """Return the command line that finishes a command with these arguments."""
    words, script = split_at_script(arguments)
    kept = [word for word in words if not word.startswith(FOLDER_SETTINGS)]
    return shlex.join(
        ["python", "-m", "dpexp", *kept, f"resume={folder}", *([] if script is None else ["--", *script])]
    )
