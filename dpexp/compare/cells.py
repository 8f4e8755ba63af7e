"""Two sweeps of the same configurations, cell by cell: did the time of a training change?"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dpexp.analysis import series
from dpexp.analysis.intervals import STOPPED_SHARE, Estimate, unpaired_ratio
from dpexp.analysis.series import Member
from dpexp.analysis.speedup import calm_seconds, far_latency, kept_blocks, pairs_with_baseline, ratios_of_times
from dpexp.errors import ResultError
from dpexp.results.jobs import read_jobs
from dpexp.results.schema import Block, Training
from dpexp.words import counted

LEVEL = 0.95  # for all cells together


@dataclass(frozen=True)
class Cell:
    """One configuration that was measured before and after."""

    name: str
    change: Estimate  # time after / time before, at a level that holds for all cells at once (Bonferroni)
    relative_change: Estimate | None  # the same of times over those of the baseline in the same block, where it has one
    cores_moved: bool = False  # whether cores were far apart in one of the two only, see analysis.speedup.far_latency

    def takes_longer(self, share: float) -> bool:
        """Whether the whole interval says that a training takes more time than before, by more than this share."""
        return self.change.low > 1 + share and not self.cores_moved

    @property
    def is_slower(self) -> bool:
        """Whether it takes more time than before, and more than its baseline: the machine alone can't cause that."""
        relative = self.relative_change
        return self.change.low > 1 and (relative is None or relative.low > 1) and not self.cores_moved

    @property
    def is_faster(self) -> bool:
        """Whether it takes less time than before, and less than its baseline."""
        relative = self.relative_change
        return self.change.high < 1 and (relative is None or relative.high < 1) and not self.cores_moved

    @property
    def is_drifted(self) -> bool:
        """Whether its time has changed and its baseline's alike: by the change, or because the machine's speed did."""
        changed = self.change.low > 1 or self.change.high < 1
        return changed and not (self.is_slower or self.is_faster or self.cores_moved)


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


def compare(before: Path, after: Path) -> Comparison:
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
    earlier, later = kept_blocks(before), kept_blocks(after)
    ratios = [_over_baseline(side) for side in (later, earlier)]
    label = labels[series.key(series.settings(config))]
    name = f"{counted(config.workers, 'worker')}, {config.train_samples:,} samples"
    return Cell(
        f"{label}, {name}" if label else name,
        _change([block.candidate for block in earlier], [block.candidate for block in later], level),
        unpaired_ratio(ratios[0], ratios[1], 1 - STOPPED_SHARE * (1 - level)) if all(ratios) else None,
        len({far_latency(block.candidate for block in side) is None for side in (earlier, later)}) > 1,
    )


def _over_baseline(blocks: Sequence[Block]) -> list[float]:
    """Of each block the candidate's time over the baseline's; none where it has no baseline."""
    pairs = pairs_with_baseline(blocks)
    return [1 / ratio for ratio in ratios_of_times(pairs)] if pairs else []


def _change(before: Sequence[Training], after: Sequence[Training], level: float) -> Estimate:
    return unpaired_ratio(calm_seconds(after), calm_seconds(before), level)


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
