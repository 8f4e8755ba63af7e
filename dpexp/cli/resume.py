"""`resume=FOLDER`: keep what an earlier command measured there, and measure what is missing.

The folder has the arguments of its command, which are composed again. User code that only the folder names is not
run: a command with a script, or with a function that makes a custom model, has to be typed again.
"""

import dataclasses
import json
import shlex
from dataclasses import replace
from pathlib import Path

from pydantic.dataclasses import dataclass

from dpexp.config.compose import Plan, compose
from dpexp.config.groups import CustomModelConfig
from dpexp.config.job import JobConfig
from dpexp.config.script import ScriptConfig
from dpexp.errors import ConfigError, ResultError, VersionError
from dpexp.machine.environment import Environment
from dpexp.machine.files import write_atomically
from dpexp.measurement.record import CHECKPOINT
from dpexp.measurement.user_files import changed_files, digests_of, fingerprint
from dpexp.results import storage
from dpexp.results.schema import RunResult

FILE_NAME = "command.json"
CHANGEABLE = ("launch.", "data.cache=")  # they don't affect what is measured
IGNORED = ("hydra.run.dir=", "hydra.sweep.dir=")  # resume= names the folder


@dataclass(frozen=True)
class Words:
    """The arguments of a command line, without those about resuming."""

    overrides: list[str]
    multirun: bool = False
    config_dir: str | None = None

    def compose(self) -> Plan:
        """What they ask for. Raises ConfigError."""
        return compose(self.overrides, self.multirun, self.config_dir)


def keep(folder: Path, words: Words) -> None:
    """Write the words of a command into its folder. Raises ConfigError where there are results, ResultError."""
    if any(folder.rglob(storage.FILE_NAME)):
        raise ConfigError(
            f"{folder}: it holds the results of another command; finish that one with resume={folder}, "
            "or choose a new folder"
        )
    with storage.write_errors(folder / FILE_NAME):
        write_atomically(folder / FILE_NAME, json.dumps(dataclasses.asdict(words)))


def read_plan(folder: Path, typed: Words) -> Plan:
    """The plan of the command in a folder, with the typed changes. Raises ConfigError."""
    kept = _read(folder)
    changes = [text for text in typed.overrides if text.startswith(CHANGEABLE)]
    again, whole = _what(typed), _what(kept)
    if not set(again) <= set(whole):
        raise ConfigError(
            f"{shlex.join(again)} with resume={folder}: it finishes what was started there ({shlex.join(whole)}); "
            "start a new sweep for other settings"
        )
    plan = replace(kept, overrides=[*kept.overrides, *changes]).compose()
    if _runs_code(plan) and again != whole:
        raise ConfigError(
            f"resume={folder}: it runs code of yours; if you trust it, type {hint(replace(plan, folder=folder), kept)}"
        )
    if not plan.jobs:
        raise ConfigError(
            f"resume={folder}: its sweeper chose the jobs while it ran, so they can't be resumed; start a new sweep"
        )
    return replace(plan, folder=folder, plugins="")  # finished here


def find_earlier(config: JobConfig, folder: Path, environment: Environment, anew: bool) -> RunResult | None:
    """The result in `folder` that a resumed job can build on; with status "ok" nothing is left to measure.

    Raises ConfigError for a result of another version or machine, and where files of the user's have changed since,
    unless what depends on them is to be measured `anew`.
    """
    path = folder / storage.FILE_NAME
    try:
        result = storage.read(path)
    except VersionError as error:
        raise ConfigError(f"{error}; resume it with that version, or start a new sweep") from error
    except ResultError:  # missing or damaged
        return None
    if result.environment.machine != environment.machine:
        raise ConfigError(
            f"{path} was measured on {result.environment.machine}, and this is {environment.machine}: "
            "times of two machines must not be mixed; resume it there, or start a new sweep here"
        )
    same_code = result.environment.code_sha256 == environment.code_sha256
    if result.status == "diverged" or not (result.status == "ok" or same_code):
        return None
    if result.config_sha256 != config.sha256 or (config.checkpoint and not (folder / CHECKPOINT).exists()):
        return None  # also if the requested checkpoint is missing
    files = fingerprint(config)
    files |= digests_of(result.user_files.keys() - files.keys())
    names = changed_files(result.user_files, files)
    if names and not anew:
        raise ConfigError(
            f"{folder}: {', '.join(names)} changed since this job was measured; "
            "restore the old files, or add anew=true to measure again what depends on them"
        )
    return None if names else result


def hint(plan: Plan, words: Words) -> str:
    """The command line that measures the missing jobs of a plan."""
    again = _what(words) if _runs_code(plan) else []
    return shlex.join(["python", "-m", "dpexp", *again, f"resume={plan.folder}"])


def _read(folder: Path) -> Words:
    path = folder / FILE_NAME
    if not path.is_file():
        raise ConfigError(
            f"resume={folder}: {FILE_NAME} is missing or not a regular file; choose the folder of a sweep or run"
        )
    try:
        return Words(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"resume={folder}: {FILE_NAME} is damaged, or of another version of dpexp; start a new sweep"
        ) from error


def _what(words: Words) -> list[str]:
    """The settings that affect the measurement, sorted."""
    return sorted(text for text in words.overrides if not text.startswith((*CHANGEABLE, *IGNORED)))


def _runs_code(plan: Plan) -> bool:
    """Whether it runs code of the user's: functions that make custom models, scripts."""
    configs = [job.config for job in plan.jobs]
    return any(isinstance(one, ScriptConfig) or isinstance(one.model, CustomModelConfig) for one in configs)
