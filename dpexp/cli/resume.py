"""`resume=FOLDER`: what an earlier command has measured there stays, and what is missing is measured.

The folder keeps the words of its command, which are composed again. Nothing that only the folder names is run:
functions that make custom models, and scripts, have to be typed again.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from dataclasses import replace
from itertools import chain
from pathlib import Path

import yaml
from pydantic.dataclasses import dataclass

from dpexp.config.compose import Job, Plan, choices, compose, parse
from dpexp.config.groups import CustomModelConfig
from dpexp.config.script import ScriptConfig
from dpexp.errors import ConfigError
from dpexp.machine.environment import Environment
from dpexp.machine.files import write_atomically
from dpexp.measurement.user_files import fingerprint
from dpexp.results import storage
from dpexp.results.schema import RunResult

FILE_NAME = "command.json"
CHANGEABLE = ("launch.", "data.cache=")  # they don't affect what is measured
IGNORED = ("hydra.run.dir=", "hydra.sweep.dir=")  # the folder is named already


@dataclass(frozen=True)
class Words:
    """Of a command line, without what is about resuming."""

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


def planned(folder: Path, typed: Words) -> Plan:
    """The plan of the command that a folder keeps, with the changes that are typed beside it. Raises ConfigError."""
    kept = _read(folder)
    changes = [text for text in typed.overrides if text.startswith(CHANGEABLE)]
    plan = replace(kept, overrides=[*kept.overrides, *changes]).compose()
    code, said = code_of(plan), {text: _singles(text) for text in typed.overrides if not text.startswith(IGNORED)}
    known = {*code, *changes, *chain.from_iterable(map(_singles, kept.overrides))}
    if others := [text for text, singles in said.items() if not known.issuperset(singles)]:
        raise ConfigError(
            f"{' '.join(others)} with resume={folder}: it finishes what was started there; "
            "start a new sweep for other settings"
        )
    if missing := sorted(set(code).difference(*said.values())):
        raise ConfigError(
            f"resume={folder}: it runs the code that {' and '.join(missing)} names; "
            f"if you trust it, add {shlex.join(missing)}"
        )
    if not plan.jobs:
        raise ConfigError(
            f"resume={folder}: its sweeper chose the jobs as it went, so they can't be resumed; start anew"
        )
    return replace(plan, folder=folder, plugins="")  # finished here


def earlier(plan: Plan, environment: Environment, anew: bool) -> list[RunResult | None]:
    """Of each job the result to build on; with status "ok" nothing is left to measure. Raises ConfigError.

    `anew` measures again what depends on files of the user's that have changed.
    """
    from dpexp.measurement.job import find_earlier  # imports torch: mistakes don't wait for it

    storage.refuse_foreign(plan.folder, environment.machine)
    return [
        find_earlier(job.config, plan.folder / job.folder, environment, fingerprint(job.config), anew)
        for job in plan.jobs
    ]


def code_of(plan: Plan) -> list[str]:
    """The settings that name the user's code: makers of custom models, commands of scripts."""
    found = set()
    for config in (job.config for job in plan.jobs):
        if isinstance(config, ScriptConfig):
            commands = dataclasses.asdict(config.script)
            found |= {f"script.{name}={command}" for name, command in commands.items() if command is not None}
        elif isinstance(config.model, CustomModelConfig):
            found.add(f"model.builder={config.model.builder}")
    return sorted(found)


def hint(plan: Plan) -> str:
    """The command line that measures what the folder of a plan lacks."""
    return shlex.join(["python", "-m", "dpexp", f"resume={plan.folder}", *code_of(plan)])


def describe(folder: Path, job: Job) -> None:
    """Keep the settings of one job in its folder, as Hydra does. Raises ResultError."""
    with storage.write_errors(folder):
        (folder / ".hydra").mkdir(parents=True, exist_ok=True)
        for name, values in (("overrides", job.overrides), ("config", job.config.settings)):
            write_atomically(folder / ".hydra" / f"{name}.yaml", yaml.safe_dump(values, sort_keys=False))


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
            f"resume={folder}: {FILE_NAME} is damaged, or of another version of dpexp; start the sweep anew"
        ) from error


def _singles(text: str) -> list[str]:
    """What an override says of single jobs; of code it may name several at once, as in a sweep."""
    override = parse(text)
    if override.is_sweep_override():
        return choices(override)
    return [f"{override.key_or_group}={override.value()}".replace("\\${", "${")]
