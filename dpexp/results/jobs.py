"""Find and read the jobs below some folders."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from dpexp.config.experiment import AnyConfig
from dpexp.config.job import CANDIDATE
from dpexp.errors import ResultError
from dpexp.results import storage
from dpexp.results.schema import RunResult


@dataclass(frozen=True)
class MeasuredJob:
    """The folder of a job, and its result."""

    name: str
    result: RunResult

    @property
    def config(self) -> AnyConfig:
        """The configuration of the job."""
        return self.result.config


@dataclass(frozen=True)
class Unreadable:
    """A job's folder without a result that can be read."""

    name: str
    status: Literal["missing", "unreadable"]
    reason: str


def read_jobs(folders: Sequence[Path]) -> tuple[list[MeasuredJob], list[Unreadable]]:
    """Return all jobs below `folders`: those with a result, and the others. Raises ResultError if there is no job."""
    jobs: list[MeasuredJob] = []
    others = []
    for folder in _job_folders(folders):
        path = folder / storage.FILE_NAME
        if not path.exists():
            overrides = " ".join(map(str, _settings(folder, "overrides"))) or "no overrides"
            others.append(Unreadable(_name(folder), "missing", f"no {storage.FILE_NAME} ({overrides})"))
            continue
        try:
            result = storage.read(path)
        except ResultError as error:
            others.append(Unreadable(_name(folder), "unreadable", str(error)))
            continue
        if not any(_is_copy(result, job.result) for job in jobs):
            jobs.append(MeasuredJob(_name(folder), result))
    if not jobs and not others:
        raise ResultError(
            f"no job found below {', '.join(map(str, folders))}: choose a folder that holds result.json files"
        )
    return jobs, others


def _is_copy(result: RunResult, earlier: RunResult) -> bool:
    """Whether the results have the same blocks: a copied folder, perhaps resumed, is no second measurement."""
    if (result.config_sha256, result.status) != (earlier.config_sha256, earlier.status):
        return False
    if not (result.blocks and earlier.blocks):
        return False
    arm, earlier_arm = result.blocks[0].arms[CANDIDATE], earlier.blocks[0].arms[CANDIDATE]
    return arm.turn_seconds == earlier_arm.turn_seconds and arm.processes == earlier_arm.processes


def _job_folders(folders: Sequence[Path]) -> list[Path]:
    """Return the folders with a result, or with settings of a dpexp job; each once, even if links lead there."""
    folders_by_place: dict[str, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ResultError(f"{folder}: no such folder")
        seen: set[str] = set()
        for path, inner, files in os.walk(folder, followlinks=True):
            place = os.path.realpath(path)
            if place in seen:
                inner.clear()
            elif storage.FILE_NAME in files or (".hydra" in inner and _is_ours(Path(path))):
                folders_by_place.setdefault(place, Path(path))
            seen.add(place)
    return sorted(folders_by_place.values(), key=lambda path: [(len(part), part) for part in path.parts])


def _is_ours(folder: Path) -> bool:
    """Whether Hydra's files in a folder may be of a dpexp job."""
    settings = _settings(folder)
    return not settings or "threads_per_worker" in settings


def _settings(folder: Path, name: str = "config") -> Any:
    """Return what Hydra's files tell about a job; () if they can't be read."""
    try:
        return yaml.safe_load((folder / ".hydra" / f"{name}.yaml").read_text()) or ()
    except (OSError, ValueError, yaml.YAMLError):
        return ()


def _name(folder: Path) -> str:
    """Return the name of a folder, whatever its bytes."""
    return os.fsencode(folder).decode(errors="backslashreplace")


def refuse_mixed_machines(jobs: Sequence[MeasuredJob]) -> None:
    """Raise ResultError if jobs ran on different machines or versions."""
    machines: dict[str, list[str]] = {}
    for job in jobs:
        machines.setdefault(job.result.environment.machine, []).append(job.name)
    if len(machines) > 1:
        parts = "; ".join(f"{machine} ({len(names)}: {names[0]} ...)" for machine, names in machines.items())
        raise ResultError(
            f"these jobs ran on {len(machines)} different set-ups, whose times must not share a curve: {parts}. "
            "Aggregate each set-up separately"
        )
