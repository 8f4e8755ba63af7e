"""`result.json` on disk: written atomically, found below folders, read with explanations of errors."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
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
    with explain_write_errors(path):
        write_atomically(path, text + "\n")
    return path


@contextlib.contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
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


def read_jobs(folders: Sequence[Path]) -> tuple[dict[str, JobResult], list[tuple[str, str, str]]]:
    """Return the results below `folders` by job, and the name, status and problem of jobs without one.

    Raises ResultError if there is no job. Of copies of a result, as in a copied folder, the first one counts.
    """
    results: dict[str, JobResult] = {}
    problems, seen = [], set()
    for folder in _job_folders(folders):
        name = os.fsencode(folder).decode(errors="backslashreplace")
        path = folder / FILE_NAME
        try:
            result = read(path)
        except ResultError as error:
            problems.append((name, "unreadable" if path.exists() else "missing", str(error)))
            continue
        measurement = result.config_sha256, result.started_at, result.status
        if measurement not in seen:
            results[name] = result
        seen.add(measurement)
    if not results and not problems:
        raise ResultError(
            f"no job found below {', '.join(map(str, folders))}: choose a folder that holds result.json files"
        )
    return results, problems


def _job_folders(folders: Sequence[Path]) -> list[Path]:
    """Return the folders with a result, or with the settings of a job that has none, in numerical order."""
    found: dict[str, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ResultError(f"{folder}: no such folder")
        for path, inner, files in os.walk(folder):
            if FILE_NAME in files or ".hydra" in inner:
                found.setdefault(os.path.realpath(path), Path(path))
    return sorted(found.values(), key=lambda path: [(len(part), part) for part in path.parts])


def refuse_mixed_machines(results: Mapping[str, JobResult]) -> None:
    """Raise ResultError if jobs ran on different machines or versions."""
    machines: dict[str, list[str]] = {}
    for name, result in results.items():
        machines.setdefault(result.environment.machine, []).append(name)
    if len(machines) > 1:
        parts = "; ".join(f"{machine} ({len(names)}: {names[0]} ...)" for machine, names in machines.items())
        raise ResultError(
            f"these jobs ran on {len(machines)} different machines or versions, whose times must not share a curve: "
            f"{parts}; aggregate them separately"
        )
