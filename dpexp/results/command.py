"""`command.json`: the jobs of one command, kept in its output folder, so that `resume=FOLDER` can finish them."""

from __future__ import annotations

import dataclasses
import functools
import json
import shlex
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import AfterValidator, ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from dpexp.config.experiment import ExperimentConfig
from dpexp.config.groups import CustomModelConfig
from dpexp.config.strategies import ScriptConfig
from dpexp.errors import ConfigError
from dpexp.files import write_atomically

FILE_NAME = "command.json"

_CONFIG = ConfigDict(extra="forbid")


def _below(folder: str) -> str:
    if Path(folder).is_absolute() or ".." in Path(folder).parts:
        raise ValueError("it must lie below the command's folder")
    return folder


@dataclass(frozen=True, config=_CONFIG)
class PlannedJob:
    """A job before it is measured: where it goes, what is particular to it, and all its settings."""

    folder: Annotated[str, AfterValidator(_below)]  # below the command's; "." for a single run
    overrides: list[str]  # for people
    config: ExperimentConfig


@dataclass(frozen=True, config=_CONFIG)
class Command:
    """All jobs of a command, in their order. None are known of a sweep that chooses its jobs as it goes."""

    format: Literal["dpexp-command"]
    version: Literal[4]
    sweep: bool
    overrides: list[str]  # as they were typed
    jobs: list[PlannedJob]

    @functools.cached_property
    def common_overrides(self) -> set[str]:
        """The overrides that all of several jobs share: their names do without them."""
        return set.intersection(*(set(job.overrides) for job in self.jobs)) if len(self.jobs) > 1 else set()

    @property
    def code(self) -> list[str]:
        """The settings that name code which a resumed job will run: makers of custom models, commands of scripts."""
        found = set()
        for job in self.jobs:
            model, strategy = job.config.model, job.config.strategy
            if isinstance(model, CustomModelConfig):
                found.add(f"model.builder={model.builder}")
            if isinstance(strategy, ScriptConfig):
                found.add(f"strategy.command={strategy.command}")
                found |= {f"strategy.baseline_command={text}" for text in [strategy.baseline_command] if text}
        return sorted(found)


def planned(overrides: list[str], jobs: Sequence[tuple[str, list[str], ExperimentConfig]], sweep: bool) -> Command:
    """The command typed as `overrides`, of jobs given as folder, overrides and configuration."""
    return Command("dpexp-command", 4, sweep, overrides, [PlannedJob(*job) for job in jobs])


def refuse_used(folder: Path) -> None:
    """Raise ConfigError when a folder holds results already: old and new ones would be reported together."""
    if next(folder.rglob("result.json"), None) is not None:
        raise ConfigError(
            f"{folder}: it holds the results of another command; finish that one with resume={folder}, "
            "or choose a new folder"
        )


def write(folder: Path, command: Command) -> None:
    """Keep the command in its output folder. Raises OSError."""
    values = dataclasses.asdict(command)
    for job, plan in zip(values["jobs"], command.jobs, strict=True):
        job["config"] = plan.config.settings
    write_atomically(folder / FILE_NAME, json.dumps(values, indent=1) + "\n")


def read(folder: Path) -> Command:
    """The command of an output folder. Raises ConfigError."""
    path = folder / FILE_NAME
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigError(
                f"resume={folder}: {FILE_NAME} is not a regular file; choose the folder of a sweep or run"
            )
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"resume={folder}: no {FILE_NAME} can be read there ({error.strerror}); choose the folder of a sweep or run"
        ) from error
    try:
        command = TypeAdapter(Command).validate_json(content)
    except ValidationError as error:
        raise ConfigError(f"resume={folder}: {_damage(content)}") from error
    if not command.jobs:
        raise ConfigError(
            f"resume={folder}: its sweeper chose the jobs as it went, so they can't be resumed; start anew"
        )
    return command


def _damage(content: bytes) -> str:
    try:
        version = json.loads(content)["version"]
    except (ValueError, KeyError, TypeError):
        version = 4
    if version != 4:
        return f"{FILE_NAME} is of format version {version}, but this dpexp reads version 4; start the sweep anew"
    return f"{FILE_NAME} is damaged; start the sweep anew"


def describe_job(folder: Path, job: PlannedJob) -> None:
    """Keep the job's settings in `.hydra/`, as Hydra does when it starts one. Raises OSError."""
    described = folder / ".hydra"
    if not described.exists():
        described.mkdir(parents=True)
        write_atomically(described / "overrides.yaml", yaml.safe_dump(job.overrides))
        write_atomically(described / "config.yaml", yaml.safe_dump(job.config.settings, sort_keys=False))


def hint(folder: Path, command: Command) -> str:
    """The command line that measures what `folder` lacks."""
    return shlex.join(["python", "-m", "dpexp", f"resume={folder}", *command.code])
