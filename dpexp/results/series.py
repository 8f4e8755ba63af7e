"""Series: jobs that may share a curve, because they differ only along it; and how each is labelled."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dpexp.config.job import JobConfig, flatten
from dpexp.results.schema import JobResult

ALONG_A_CURVE = ("workers", "data.size")
ARGUMENTS = "script.arguments."
DATA_FILE, DIGITS = "data.path", 8


@dataclass(frozen=True)
class SeriesMember:
    """The result of a job, and its series."""

    name: str
    result: JobResult
    differing_files: frozenset[str] = frozenset()  # files whose content differs between jobs

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The settings that all jobs of the series share, and short SHA-256 digests of code and differing files."""
        files = self.result.user_files
        digests = {name: files[name] for name in self.differing_files & files.keys()}
        digests["dpexp.code"] = self.result.environment.code_sha256
        if DATA_FILE in digests:
            digests["data.sha256"] = digests.pop(DATA_FILE)
        return shared_settings(self.result.config) | {name: digests[name][:DIGITS] for name in sorted(digests)}

    @cached_property
    def series_key(self) -> str:
        """A key of the series."""
        return json.dumps(self.settings)

    @cached_property
    def comparison_key(self) -> str:
        """A key of jobs over the same process that differ only in workers, threads, data size or arguments."""
        differing = ("threads_per_worker", ARGUMENTS)
        shared = {name: value for name, value in self.settings.items() if not name.startswith(differing)}
        return json.dumps([shared, shared_settings(self.result.config.baseline(1))])


def series_members(results: Mapping[str, JobResult]) -> list[SeriesMember]:
    """Return the jobs with their series; jobs with different contents of a user's file belong to different series."""
    contents_by_name: dict[str, set[str]] = {}
    for result in results.values():
        for name, sha256 in result.user_files.items():
            contents_by_name.setdefault(name, set()).add(sha256)
    differing_files = frozenset(name for name, contents in contents_by_name.items() if len(contents) > 1)
    return [SeriesMember(name, result, differing_files) for name, result in results.items()]


def shared_settings(config: JobConfig) -> dict[str, Any]:
    """Return all settings that the jobs of a curve must share."""
    values = flatten(config.identity)
    return {name: values[name] for name in sorted(values) if name not in ALONG_A_CURVE}


def differences(all_settings: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the settings in which each series differs from the others, by its key: none if there is only one."""
    series = {json.dumps(settings): settings for settings in all_settings}

    def differs(name: str, among: Iterable[Mapping[str, Any]]) -> bool:
        return len({json.dumps(settings.get(name, "absent")) for settings in among}) > 1

    def differs_within_a_choice(setting: str) -> bool:
        # A setting that only follows from the choice of a group is not named.
        name = f"{setting.split('.')[0]}.name"
        choices = {settings.get(name) for settings in series.values()}
        return any(
            differs(setting, [settings for settings in series.values() if settings.get(name) == choice])
            for choice in choices
        )

    names = sorted({name for settings in series.values() for name in settings})
    chosen = [
        name
        for name in names
        if (name.endswith(".name") and differs(name, series.values())) or differs_within_a_choice(name)
    ]
    short = {name: name.removesuffix(".name").removeprefix(ARGUMENTS) for name in chosen}
    found = {
        key: {short[name]: settings[name] for name in chosen if name in settings} for key, settings in series.items()
    }
    if len({label(differing) for differing in found.values()}) < len(found):  # as by 1 and "1"
        found = {key: {name: json.dumps(value) for name, value in named.items()} for key, named in found.items()}
    return found


def label(differing: Mapping[str, Any]) -> str:
    """Return the label of a series from the settings in which it differs."""
    return ", ".join(f"{name}={value}" for name, value in differing.items())
