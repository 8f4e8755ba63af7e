"""`result.json` on disk: written all or nothing, read with an explanation of what is wrong."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from dpexp.config.experiment import LOOP
from dpexp.config.job import JobConfig
from dpexp.errors import ConfigError, ResultError, VersionError
from dpexp.machine.environment import Environment
from dpexp.machine.files import write_atomically
from dpexp.results.schema import VERSION, RunResult

FILE_NAME = "result.json"

_ADAPTER = TypeAdapter(RunResult)


def finite(value: float) -> float | None:
    """The value, or None for NaN and infinity, which JSON doesn't have."""
    return value if math.isfinite(value) else None


def write(result: RunResult, folder: Path) -> Path:
    """Write `result.json` into `folder`, all or nothing. Raises ResultError."""
    path = folder / FILE_NAME
    text = json.dumps(dataclasses.asdict(result), allow_nan=False)
    with write_errors(path):
        write_atomically(path, text + "\n")
    return path


@contextlib.contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn an OSError within into a ResultError that names `path`."""
    try:
        yield
    except OSError as error:
        raise ResultError(f"can't write {path}: {error.strerror}") from error


def read(path: Path) -> RunResult:
    """Read one result. Raises ResultError when it is damaged, VersionError when another version wrote it."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ResultError(f"{path}: can't be read ({error.strerror})") from error
    try:
        return _ADAPTER.validate_json(content, extra="ignore")  # such as settings that are gone
    except ValidationError as error:
        raise _explained(path, content, error) from error


def read_earlier(folder: Path, config: JobConfig, environment: Environment) -> RunResult | None:
    """The earlier result in `folder` that a resumed job can build on: it measured the same configuration.

    None where there is none. Raises ConfigError for a result of another version or machine.
    """
    earlier = _of_this_machine(folder / FILE_NAME, environment.machine)
    if earlier is None or earlier.config_sha256 != config.sha256 or earlier.status == "diverged":
        return None
    same_code = earlier.environment.code_sha256 == environment.code_sha256
    return earlier if earlier.status == "ok" or same_code else None


def refuse_foreign(folder: Path, machine: str) -> None:
    """Raise ConfigError when a result below `folder` is of another version or machine: it must not be added to."""
    for path in sorted(folder.rglob(FILE_NAME)):
        _of_this_machine(path, machine)


def _of_this_machine(path: Path, machine: str) -> RunResult | None:
    """The result, or None where there is none, or a damaged one."""
    try:
        result = read(path)
    except VersionError as error:
        raise ConfigError(f"{error}; resume it with that version, or start a new sweep") from error
    except ResultError:
        return None
    if result.environment.machine != machine:
        raise ConfigError(
            f"{path} was measured on {result.environment.machine}, and this is {machine}: "
            "times of two machines must not be mixed; resume it there, or start a new sweep here"
        )
    return result


def _explained(path: Path, content: bytes, error: ValidationError) -> ResultError:
    """What is wrong with a file that is no result of this version."""
    try:
        values = json.loads(content)
    except ValueError as damage:
        return ResultError(f"{path}: damaged ({damage})")
    if not isinstance(values, dict) or values.get("format") != "dpexp-result":
        return ResultError(f"{path}: not a result of dpexp")
    if isinstance(values.get("version"), int) and values["version"] != VERSION:
        return VersionError(f"{path}: format version {values['version']}, but this dpexp reads version {VERSION}")
    first = error.errors()[0]
    place = [str(part) for part in first["loc"] if part != LOOP]
    return ResultError(f"{path}: damaged ({'.'.join(place)}: {first['msg']})")
