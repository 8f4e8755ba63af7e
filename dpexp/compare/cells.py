"""Two sweeps of the same configurations, cell by cell: did the time of a training change?"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dpexp.analysis.intervals import Estimate
from dpexp.analysis.ratios import Pooled, compare, step_seconds
from dpexp.errors import ResultError, counted
from dpexp.results import series
from dpexp.results.jobs import read_jobs
from dpexp.results.schema import BASELINE, CANDIDATE
from dpexp.results.series import Member

LEVEL = 0.95  # for all cells together


@dataclass(frozen=True)
class Cell:
    """One configuration that was measured before and after."""

    name: str
    change: Estimate  # time after / time before, at a level that holds for all cells at once (Bonferroni)
    relative_change: Estimate | None  # the same of times over those of the baseline in the same block, where it has one

    def takes_longer(self, share: float) -> bool:
        """Whether the whole interval says that a training takes more time than before, by more than this share."""
        return self.change.low > 1 + share

    @property
    def is_slower(self) -> bool:
        """Whether it takes more time than before, and more than its baseline: the machine alone can't cause that."""
        relative = self.relative_change
        return self.change.low > 1 and (relative is None or relative.low > 1)

    @property
    def is_faster(self) -> bool:
        """Whether it takes less time than before, and less than its baseline."""
        relative = self.relative_change
        return self.change.high < 1 and (relative is None or relative.high < 1)

    @property
    def is_drifted(self) -> bool:
        """Whether its time has changed and its baseline's alike: by the change, or because the machine's speed did."""
        changed = self.change.low > 1 or self.change.high < 1
        return changed and not (self.is_slower or self.is_faster)


@dataclass(frozen=True)
class Comparison:
    """The cells that both folders have, and what could not be compared."""

    cells: list[Cell]
    others: int  # configurations that one folder only has
    failed: list[str]  # jobs after the change that have no good result

    def is_slower(self, share: float) -> bool:
        """Whether any cell is, or can't be told because its job failed, or has no interval."""
        unknown = any(math.isnan(cell.change.low) for cell in self.cells)
        return bool(self.failed) or unknown or any(cell.takes_longer(share) for cell in self.cells)


def compare_folders(before: Path, after: Path) -> Comparison:
    """Compare two folders cell by cell. Raises ResultError when nothing can be compared."""
    sides = [_configurations(folder) for folder in (before, after)]
    _refuse_other_machines(*sides)
    common = [key for key in sides[0] if key in sides[1]]
    if not common:
        raise ResultError(_no_common(before, after, *(next(iter(side.values()))[0] for side in sides)))
    labels = series.labels([series.settings(sides[0][key][0].config) for key in common])
    level = 1 - (1 - LEVEL) / len(common)
    jobs, unreadable = read_jobs([after])
    failed = [job.name for job in jobs if job.result.status != "ok"] + [job.name for job in unreadable]
    cells = [_cell(sides[0][key], sides[1][key], level, labels) for key in common]
    return Comparison(cells, len(sides[0].keys() ^ sides[1].keys()), failed)


def _configurations(folder: Path) -> dict[str, list[Member]]:
    """The good jobs by their settings: the code and the files may differ, which is what a comparison is for."""
    found: dict[str, list[Member]] = {}
    for job in read_jobs([folder])[0]:
        if job.result.status == "ok":
            config = job.config
            key = json.dumps([series.key(series.settings(config)), config.workers, config.data.size])
            found.setdefault(key, []).append(Member(job))
    if not found:
        raise ResultError(f"{folder}: no job there was measured to its end")
    return found


def _cell(before: Sequence[Member], after: Sequence[Member], level: float, labels: Mapping[str, str]) -> Cell:
    config = before[0].config
    earlier, later = (_measured(side) for side in (before, after))
    label = labels[series.key(series.settings(config))]
    name = f"{counted(config.workers, 'worker')}, {config.train_samples:,} samples"
    known = earlier.over_baseline is not None and later.over_baseline is not None
    return Cell(
        f"{label}, {name}" if label else name,
        _quotient(later.seconds, earlier.seconds).estimate(level),
        _quotient(earlier.over_baseline, later.over_baseline).estimate(level) if known else None,
    )


@dataclass(frozen=True)
class _Measured:
    """Logs: of a step's seconds, and of the speedup over the baseline of the same blocks."""

    seconds: Pooled
    over_baseline: Pooled | None


def _measured(members: Sequence[Member]) -> _Measured:
    jobs = [member.job.result.kept() for member in members]
    found = compare(jobs, BASELINE, CANDIDATE)
    blocks = found.blocks or [block for job in jobs for block in job]
    seconds = step_seconds(blocks, CANDIDATE, found.limits[1])
    assert seconds is not None
    return _Measured(seconds, found.shown_log)


def _quotient(first: Pooled | None, second: Pooled | None) -> Pooled:
    assert first is not None
    assert second is not None
    return first.less(second)


def _refuse_other_machines(before: Mapping[str, list[Member]], after: Mapping[str, list[Member]]) -> None:
    """Raise ResultError where the hardware differs. A new version of torch may be what is compared."""
    machines = {
        (environment.cpu_model, environment.usable_cores, environment.memory_bytes >> 30)
        for side in (before, after)
        for members in side.values()
        for environment in (member.job.result.environment for member in members)
    }
    if len(machines) > 1:
        parts = "; ".join(f"{model}, {cores} usable cores, {memory} GiB" for model, cores, memory in sorted(machines))
        raise ResultError(f"they were measured on different machines, whose times can't be compared: {parts}")


def _no_common(before: Path, after: Path, first: Member, second: Member) -> str:
    """Why no configuration is in both: what differs between the first of each."""
    settings = [
        series.settings(member.config) | {"workers": member.config.workers, "data.size": member.config.data.size}
        for member in (first, second)
    ]
    names = [name for name in settings[0] if settings[0][name] != settings[1].get(name)]
    parts = [f"{name}={settings[0][name]} against {settings[1].get(name)}" for name in names[:3]]
    return f"{before} and {after} have no configuration in common: {', '.join(parts)}"
