"""`result.json` on disk: written atomically, read with explanations of errors."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from dpexp.config.built_in import BUILT_IN
from dpexp.errors import ResultError, VersionError
from dpexp.machine.files import write_atomically
from dpexp.results.schema import VERSION, JobResult

FILE_NAME = "result.json"

_ADAPTER = TypeAdapter(JobResult)


def write(result: JobResult, folder: Path) -> Path:
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


def read(path: Path) -> JobResult:
    """Read one result. Raises ResultError when it is damaged, VersionError when another version wrote it."""
    try:
        content = path.read_bytes()
        return _ADAPTER.validate_json(content, extra="ignore")  # ignore, for example, settings that no longer exist
    except OSError as error:
        raise ResultError(f"{path}: can't be read ({error.strerror})") from error
    except ValidationError as error:
        raise _explain(path, error) from error


def _explain(path: Path, error: ValidationError) -> ResultError:
    """Return the error for a file that is not a result of this version."""
    items = {".".join(str(part) for part in item["loc"] if part != BUILT_IN): item for item in error.errors()}
    place, first = next(iter(items.items()))
    if "format" in items or first["type"] == "dataclass_type":
        return ResultError(f"{path}: not a result of dpexp")
    if "version" in items and isinstance(version := items["version"]["input"], int):
        return VersionError(f"{path}: format version {version}, but this dpexp reads version {VERSION}")
    return ResultError(f"{path}: damaged ({place}: {first['msg']})")
