"""The arguments, before Hydra sees them: its flags checked, `resume=` replaced by what it stands for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from hydra._internal.utils import get_args_parser

from dpexp import resume
from dpexp.errors import ConfigError


@dataclass(frozen=True)
class Asked:
    """What this process was asked to do."""

    arguments: list[str]  # for Hydra
    given: list[str]  # the overrides as they were typed
    command: resume.Command  # what is meant
    resumes: Path | None  # the folder to go on with


def parse(arguments: Sequence[str]) -> Asked:
    """Understand the arguments (without the program's name). Raises ConfigError, where Hydra would print its usage."""

    def refuse(message: str) -> NoReturn:
        raise ConfigError(f"{message}; --help and --hydra-help list what there is")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    overrides: list[str] = parser.parse_args(list(arguments)).overrides
    given = [one for one in overrides if not one.startswith("resume=")]
    folders = [one.partition("=")[2] for one in overrides if one.startswith("resume=")]
    flags = [one for one in arguments if one not in overrides and one not in ("-m", "--multirun")]
    if not folders:
        multirun = "-m" in arguments or "--multirun" in arguments
        command = resume.Command("dpexp-command", 1, multirun, flags, given)
        return Asked(list(arguments), given, command, None)
    if len(folders) > 1 or not folders[0]:
        raise ConfigError(f"resume={','.join(folders)}: name the folder of one sweep or run")
    folder = Path(folders[0]).expanduser()
    command = resume.read(folder)
    meant = resume.expand(folder, command, flags, given)
    return Asked([*flags, *(["-m"] if command.multirun else []), *meant], given, command, folder)
