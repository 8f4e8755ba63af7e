"""What was asked of an output folder, kept there, so that it can be asked again: `resume=FOLDER`."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from dpexp.errors import ConfigError
from dpexp.files import write_atomically

FILE_NAME = "command.json"
FOLDERS = ("hydra.run.dir=", "hydra.sweep.dir=")


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Command:
    """A command line, its flags left out."""

    format: Literal["dpexp-command"]
    version: Literal[1]
    multirun: bool
    overrides: list[str]

    @property
    def own(self) -> list[str]:
        """The overrides that say what is measured."""
        return [one for one in self.overrides if not one.lstrip("+~").startswith("hydra")]

    @property
    def of_hydra(self) -> list[str]:
        """The other ones, but for the folder."""
        return [one for one in self.overrides if one not in self.own and not one.startswith(FOLDERS)]


def write(folder: Path, multirun: bool, overrides: Sequence[str]) -> None:
    """Keep a command line in the folder that it writes into. Raises OSError."""
    command = Command(format="dpexp-command", version=1, multirun=multirun, overrides=list(overrides))
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


def expand(folder: Path, command: Command, given: Sequence[str]) -> list[str]:
    """The overrides that `resume=` stands for; `given` are those beside it. Raises ConfigError.

    Overrides of Hydra itself can name code to run. They are never taken from the folder: the user says them again.
    """
    changes = [one for one in given if one not in command.overrides and not one.startswith("launch.")]
    if changes:
        raise ConfigError(
            f"{' '.join(changes)} with resume={folder}: it repeats {' '.join(command.own) or 'the default'} "
            "and nothing else; start a new sweep for another"
        )
    if missing := [one for one in command.of_hydra if one not in given]:
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


def hint(folder: Path, multirun: bool, overrides: Sequence[str]) -> str:
    """The command that goes on with what `folder` holds."""
    command = Command(format="dpexp-command", version=1, multirun=multirun, overrides=list(overrides))
    again = [one for one in command.own if "builder" in one]
    return shlex.join(["python", "-m", "dpexp", f"resume={folder}", *again, *command.of_hydra])
