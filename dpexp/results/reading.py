"""Find and read the results below some folders."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from dpexp.errors import ResultError
from dpexp.results import storage
from dpexp.results.schema import JobResult


def read_jobs(folders: Sequence[Path]) -> tuple[dict[str, JobResult], list[tuple[str, str, str]]]:
    """Return the results below `folders` by job, and the name, status and problem of jobs without one.

    Raises ResultError if there is no job. Of copies of a result, as in a copied folder, the first one counts.
    """
    results: dict[str, JobResult] = {}
    problems, seen = [], set()
    for folder in _job_folders(folders):
        name = os.fsencode(folder).decode(errors="backslashreplace")
        path = folder / storage.FILE_NAME
        try:
            result = storage.read(path)
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
            if storage.FILE_NAME in files or ".hydra" in inner:
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
