"""`command.json`, which keeps the jobs of a command in its output folder, and `resume=FOLDER`, which finishes them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import yaml
from pydantic import TypeAdapter, ValidationError

from dpexp.config.compose import Job, Plan, choices, parse
from dpexp.config.experiment import ExperimentConfig, from_settings
from dpexp.config.explain import explain
from dpexp.config.groups import CustomModelConfig
from dpexp.config.strategies import ScriptConfig
from dpexp.errors import ConfigError
from dpexp.machine.environment import Environment
from dpexp.machine.files import write_atomically
from dpexp.measurement.user_files import fingerprint
from dpexp.results import storage
from dpexp.results.schema import RunResult

FILE_NAME = "command.json"
CHANGEABLE = ("launch.", "data.cache=")  # they don't affect what is measured
COMMANDS = ("strategy.command=", "strategy.baseline_command=")
IGNORED = ("hydra.run.dir=", "hydra.sweep.dir=")  # the folder is named already

_ADAPTER = TypeAdapter(Plan)


def keep(plan: Plan) -> None:
    """Write a plan into its folder. Raises ConfigError where there are results of another, ResultError."""
    if any(plan.folder.rglob(storage.FILE_NAME)):
        raise ConfigError(
            f"{plan.folder}: it holds the results of another command; finish that one with resume={plan.folder}, "
            "or choose a new folder"
        )
    with storage.write_errors(plan.folder / FILE_NAME):
        write_atomically(plan.folder / FILE_NAME, _ADAPTER.dump_json(plan, indent=1))


def planned(folder: Path, typed: Sequence[str]) -> Plan:
    """The plan of a folder, with the changes that are typed beside it. Raises ConfigError.

    Nothing that only the folder names is run: functions that make custom models, and scripts, have to be typed again.
    """
    plan = _read(folder)
    code = code_of(plan)
    changes = [text for text in typed if text.startswith(CHANGEABLE)]
    known = {*code, *changes, *chain.from_iterable(job.overrides for job in plan.jobs)}
    said = {text: _singles(text) for text in typed if not text.startswith(IGNORED)}
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
    return replace(plan, jobs=[replace(job, config=_changed(job.config, changes)) for job in plan.jobs])


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
    for model, strategy in ((job.config.model, job.config.strategy) for job in plan.jobs):
        if isinstance(model, CustomModelConfig):
            found.add(f"model.builder={model.builder}")
        if isinstance(strategy, ScriptConfig):
            found.add(f"strategy.command={strategy.command}")
            found |= {f"strategy.baseline_command={text}" for text in [strategy.baseline_command] if text}
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


def _read(folder: Path) -> Plan:
    path = folder / FILE_NAME
    try:
        if not path.is_file():
            raise ConfigError(
                f"resume={folder}: {FILE_NAME} is missing or not a regular file; choose the folder of a sweep or run"
            )
        plan = replace(_ADAPTER.validate_json(path.read_bytes()), folder=folder, plugins="")  # finished here
    except (OSError, ValidationError) as error:
        raise ConfigError(
            f"resume={folder}: {FILE_NAME} is damaged, or of another version of dpexp; start the sweep anew"
        ) from error
    if not plan.jobs:
        raise ConfigError(
            f"resume={folder}: its sweeper chose the jobs as it went, so they can't be resumed; start anew"
        )
    return plan


def _changed(config: ExperimentConfig, changes: Sequence[str]) -> ExperimentConfig:
    """The experiment with some settings of its groups replaced. Raises ConfigError."""
    settings = config.settings
    for key, _, value in (text.partition("=") for text in changes):
        group, _, name = key.partition(".")
        settings[group][name] = yaml.safe_load(value)
    try:
        return from_settings(settings)
    except ValidationError as error:
        raise ConfigError(explain(error)) from error


def _singles(text: str) -> list[str]:
    """What a typed override says of single jobs; of code it may name several at once, as in a sweep."""
    override = parse(text)
    if text.startswith(COMMANDS):
        return [f"{override.key_or_group}={override.value()}".replace("\\${", "${")]
    return [one.replace("\\:", ":") for one in choices(override)]
