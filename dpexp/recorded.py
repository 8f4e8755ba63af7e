"""The jobs that lie below folders: found, read, and told apart by their settings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml

from dpexp import results, series
from dpexp.config import ExperimentConfig
from dpexp.errors import ResultError
from dpexp.results import RunResult


@dataclass(frozen=True)
class Job:
    """One job's folder and what was recorded there."""

    name: str
    result: RunResult

    @property
    def config(self) -> ExperimentConfig:
        """Of the job."""
        return self.result.config

    @cached_property
    def series(self) -> dict[str, Any]:
        """All settings that one curve must share: all but workers, data size and the number of blocks."""
        return series.settings(self.config)

    @cached_property
    def series_key(self) -> str:
        """The same for jobs of the same series."""
        return series.key(self.series)

    @property
    def key(self) -> str:
        """The same for measurements of the same configuration."""
        return json.dumps([self.series_key, self.config.workers, self.config.data.size])


@dataclass(frozen=True)
class Unreadable:
    """A job's folder without a result that can be read."""

    name: str
    status: Literal["missing", "unreadable"]
    reason: str


def read_jobs(folders: Sequence[Path]) -> tuple[list[Job], list[Unreadable]]:
    """All jobs below `folders`, read where they can be. Raises ResultError when there is none, or no such folder."""
    jobs, others = [], []
    for folder in _job_folders(folders):
        path = folder / results.FILE_NAME
        if not path.exists():
            others.append(Unreadable(str(folder), "missing", f"no {results.FILE_NAME} ({_overrides(folder)})"))
            continue
        try:
            jobs.append(Job(str(folder), results.read(path)))
        except ResultError as error:
            others.append(Unreadable(str(folder), "unreadable", str(error)))
    if not jobs and not others:
        raise ResultError(f"no job lies below {', '.join(map(str, folders))}: look for folders with result.json")
    return jobs, others


def _job_folders(folders: Sequence[Path]) -> list[Path]:
    found: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ResultError(f"{folder}: no such folder")
        for path in [*folder.rglob(results.FILE_NAME), *folder.rglob(".hydra")]:
            found.setdefault(path.parent.resolve(), path.parent)
    return sorted(found.values(), key=lambda path: [(len(part), part) for part in path.parts])


def _overrides(folder: Path) -> str:
    try:
        overrides = yaml.safe_load((folder / ".hydra" / "overrides.yaml").read_text())
        return " ".join(map(str, overrides)) or "no overrides"
    except (OSError, yaml.YAMLError, TypeError):
        return "its overrides are unknown"


def refuse_mixed_machines(jobs: Sequence[Job]) -> None:
    """Raise ResultError when jobs ran on different set-ups."""
    machines: dict[str, list[str]] = {}
    for job in jobs:
        machines.setdefault(job.result.environment.machine, []).append(job.name)
    if len(machines) > 1:
        parts = "; ".join(f"{machine} ({len(names)}: {names[0]} ...)" for machine, names in machines.items())
        raise ResultError(
            f"these jobs ran on {len(machines)} different set-ups, whose times must not share a curve: {parts}. "
            "Aggregate each alone"
        )
