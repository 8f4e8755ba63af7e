"""The command line, before Hydra sees it: its flags checked, `resume=` taken out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NoReturn

from hydra._internal.utils import get_args_parser

from dpexp.config.overrides import spelled
from dpexp.config.yaml_files import known_groups
from dpexp.errors import ConfigError

RESUME, ANEW = "resume=", "anew=true"
CONFIRMATIONS = ("model.builder=", "strategy.command=", "strategy.baseline_command=")  # of code that resume= would run
CHANGEABLE = ("launch.", "data.cache=")  # settings that a resumed job may change: they don't affect what is measured


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    arguments: list[str]  # for Hydra
    flags: list[str]  # Hydra's, but -m
    overrides: list[str]  # without resume=
    resume: Path | None  # the folder to finish
    anew: bool = False  # measure again what depends on files that have changed
    confirmed: frozenset[str] = frozenset()  # settings that name code, as they were typed

    @property
    def changes(self) -> list[str]:
        """The overrides that a resumed job may change."""
        return [text for text in self.overrides if text.startswith(CHANGEABLE)]


def parse(arguments: Sequence[str]) -> Request:
    """Read the arguments (without the program's name). Raises ConfigError, where Hydra would print its usage."""

    def refuse(message: str) -> NoReturn:
        flag = message.removeprefix("unrecognized arguments: ").split()[0].lstrip("-")
        if "=" in flag or flag.split(".")[0] in known_groups():
            message += f" (settings have no dashes: {flag if '=' in flag else f'{flag}=...'})"
        raise ConfigError(f"{message}; --help and --hydra-help list what there is")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    typed: list[str] = parser.parse_intermixed_args(list(arguments)).overrides
    flags = [text for text in arguments if text not in typed and text not in ("-m", "--multirun")]
    multirun = ["-m"] if "-m" in arguments or "--multirun" in arguments else []
    folders = [text.removeprefix(RESUME) for text in typed if text.startswith(RESUME)]
    anew = bool(folders) and ANEW in typed
    overrides = spelled([text for text in typed if not text.startswith(RESUME) and not (anew and text == ANEW)])
    for_hydra = [*flags, *multirun, *overrides]
    if not folders:
        return Request(for_hydra, flags, overrides, None)
    if len(folders) > 1 or not folders[0]:
        raise ConfigError(f"resume={','.join(folders)}: name the folder of one sweep or run")
    confirmed = frozenset(chain.from_iterable(_confirmations(text) for text in typed))
    return Request(for_hydra, flags, overrides, Path(folders[0]).expanduser(), anew, confirmed)


def _confirmations(text: str) -> list[str]:
    """The code that an override names; several makers of models may be named at once, as in a sweep."""
    key, _, value = text.partition("=")
    if f"{key}=" not in CONFIRMATIONS:
        return []
    return [f"{key}={builder}" for builder in value.split(",")] if key == "model.builder" else [text]
