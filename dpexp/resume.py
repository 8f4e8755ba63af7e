"""What was asked of an output folder, kept there, so that it can be asked again: `resume=FOLDER`."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from dpexp.errors import ConfigError
from dpexp.files import write_atomically

FILE_NAME = "command.json"
FOLDERS = ("hydra.run.dir=", "hydra.sweep.dir=")


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Command:
    """A command line: Hydra's flags but -m, and the overrides."""

    format: Literal["dpexp-command"]
    version: Literal[1]
    multirun: bool
    flags: list[str]
    overrides: list[Annotated[str, Field(pattern="^[^-]")]]  # no flag in disguise

    @property
    def own(self) -> list[str]:
        """The overrides that say what is measured."""
        return [one for one in self.overrides if "hydra" not in one.partition("=")[0]]

    @property
    def of_hydra(self) -> list[str]:
        """The other ones, but for the folder."""
        return [one for one in self.overrides if one not in self.own and not one.startswith(FOLDERS)]


def write(folder: Path, command: Command) -> None:
    """Keep a command line in the folder that it writes into. Raises OSError."""
    write_atomically(folder / FILE_NAME, json.dumps(dataclasses.asdict(command), indent=1) + "\n")


def read(folder: Path) -> Command:
    """The command line kept in `folder`. Raises ConfigError."""
    try:
        return TypeAdapter(Command).validate_json((folder / FILE_NAME).read_bytes())
    except OSError as error:
        raise ConfigError(
            f"resume={folder}: no {FILE_NAME} can be read there ({error.strerror}); choose the folder of a sweep or run"
        ) from error
    except ValidationError as error:
        raise ConfigError(f"resume={folder}: {FILE_NAME} is damaged; start the sweep anew") from error


def expand(folder: Path, command: Command, flags: Sequence[str], given: Sequence[str]) -> list[str]:
    """The overrides that `resume=` stands for; `flags` and `given` are those beside it. Raises ConfigError.

    Flags and overrides of Hydra itself can name code to run. They are never taken from the folder: the user says them
    again.
    """
    changes = [one for one in given if one not in command.overrides and not one.startswith("launch.")]
    if changes:
        raise ConfigError(
            f"{' '.join(changes)} with resume={folder}: it repeats {' '.join(command.own) or 'the default'} "
            "and nothing else; start a new sweep for another"
        )
    missing = [one for one in command.of_hydra if one not in given]
    missing = [*(command.flags if command.flags != list(flags) else []), *missing]
    if missing:
        raise ConfigError(f"resume={folder}: it was started with {shlex.join(missing)}; say that again beside it")
    quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    place = f"hydra.{'sweep' if command.multirun else 'run'}.dir='{quoted}'"
    return [*command.own, *command.of_hydra, *(one for one in given if one.startswith("launch.")), place]


def check_code(builder: str, given: Sequence[str]) -> None:
    """A model's builder is code, and not taken from the folder either. Raises ConfigError."""
    if not any(builder in one for one in given):
        raise ConfigError(
            f"resume: its model is made by {builder}, which runs code; if that is yours, add model.builder={builder}"
        )


def hint(folder: Path, command: Command) -> str:
    """The command that goes on with what `folder` holds."""
    again = [one for one in command.own if "builder" in one]
    return shlex.join(["python", "-m", "dpexp", *command.flags, f"resume={folder}", *again, *command.of_hydra])
