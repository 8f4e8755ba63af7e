"""The jobs that lie below folders: found, and read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from dpexp.config.job import JobConfig
from dpexp.errors import ResultError
from dpexp.results import storage
from dpexp.results.schema import RunResult


@dataclass(frozen=True)
class Job:
    """One job's folder and its result."""

    name: str
    result: RunResult

    @property
    def config(self) -> JobConfig:
        """The configuration of the job."""
        return self.result.config


@dataclass(frozen=True)
class Unreadable:
    """A job's folder without a result that can be read."""

    name: str
    status: Literal["missing", "unreadable"]
    reason: str


def read_jobs(folders: Sequence[Path]) -> tuple[list[Job], list[Unreadable]]:
    """All jobs below `folders`: those with a result, and the others. Raises ResultError when there is no job."""
    jobs, others = [], []
    for folder in _job_folders(folders):
        path = folder / storage.FILE_NAME
        if not path.exists():
            others.append(Unreadable(str(folder), "missing", f"no {storage.FILE_NAME} ({_overrides(folder)})"))
            continue
        try:
            jobs.append(Job(str(folder), storage.read(path)))
        except ResultError as error:
            others.append(Unreadable(str(folder), "unreadable", str(error)))
    if not jobs and not others:
        raise ResultError(
            f"no job lies below {', '.join(map(str, folders))}: choose a folder that holds result.json files"
        )
    return jobs, others


def _job_folders(folders: Sequence[Path]) -> list[Path]:
    found: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ResultError(f"{folder}: no such folder")
        for path in [*folder.rglob(storage.FILE_NAME), *folder.rglob(".hydra")]:
            found.setdefault(path.parent.resolve(), path.parent)
    return sorted(found.values(), key=lambda path: [(len(part), part) for part in path.parts])


def _overrides(folder: Path) -> str:
    try:
        overrides = yaml.safe_load((folder / ".hydra" / "overrides.yaml").read_text())
        return " ".join(map(str, overrides)) or "no overrides"
    except (OSError, yaml.YAMLError, TypeError):
        return "its overrides are unknown"


def refuse_mixed_machines(jobs: Sequence[Job]) -> None:
    """Raise ResultError when jobs ran on different machines or versions."""
    machines: dict[str, list[str]] = {}
    for job in jobs:
        machines.setdefault(job.result.environment.machine, []).append(job.name)
    if len(machines) > 1:
        parts = "; ".join(f"{machine} ({len(names)}: {names[0]} ...)" for machine, names in machines.items())
        raise ResultError(
            f"these jobs ran on {len(machines)} different set-ups, whose times must not share a curve: {parts}. "
            "Aggregate each set-up by itself"
        )
