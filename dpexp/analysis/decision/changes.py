"""Two sweeps of the same configurations, cell by cell: did the time of a training change?"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dpexp.analysis.intervals import Estimate
from dpexp.analysis.ratios import Pooled
from dpexp.analysis.speedup import over_baseline
from dpexp.config.job import JobConfig
from dpexp.errors import ResultError, counted
from dpexp.results import series
from dpexp.results.jobs import MeasuredJob, read_jobs
from dpexp.results.series import Member, Settings

LEVEL = 0.95  # for all cells together
SLOWER, FASTER, LIKE_BASELINE, SAME = "slower", "faster", "like its baseline", "no difference shown"


@dataclass(frozen=True)
class Cell:
    """One configuration that was measured before and after."""

    name: str
    change: Estimate  # time after / time before, at a level that holds for all cells at once (Bonferroni)
    relative_change: Estimate | None  # the same of times over those of the baseline in the same block, where it has one

    def takes_longer(self, share: float) -> bool:
        """Whether the whole interval is above 1 + share."""
        return self.change.low > 1 + share

    @property
    def verdict(self) -> str:
        """SLOWER or FASTER where its time has changed, and by more than its baseline's.

        LIKE_BASELINE if the baseline changed, too: by the change, or because the machine's speed changed.
        """
        known = [self.change] if self.relative_change is None else [self.change, self.relative_change]
        if all(change.low > 1 for change in known):
            return SLOWER
        if all(change.high < 1 for change in known):
            return FASTER
        return LIKE_BASELINE if self.change.low > 1 or self.change.high < 1 else SAME


@dataclass(frozen=True)
class Changes:
    """The cells that both folders have, and what could not be compared."""

    cells: list[Cell]
    others: int  # configurations that only one folder has
    failed: list[str]  # jobs after the change that have no good result

    def is_slower(self, share: float) -> bool:
        """Whether any cell is slower by more than this share, or unknown because its job failed."""
        return bool(self.failed) or any(cell.takes_longer(share) for cell in self.cells)


def compare_folders(before: Path, after: Path) -> Changes:
    """Compare two folders cell by cell. Raises ResultError when nothing can be compared."""
    earlier, _ = _configurations(before)
    later, failed = _configurations(after)
    _refuse_other_machines([job for jobs in (*earlier.values(), *later.values()) for job in jobs])
    common = [key for key in earlier if key in later]
    if not common:
        differing = differences(*(_settings(next(iter(side.values()))[0].config) for side in (earlier, later)))
        raise ResultError(f"{before} and {after} have no configuration in common: {differing}")
    level = 1 - (1 - LEVEL) / len(common)
    labels = series.labels([series.settings(earlier[key][0].config) for key in common])
    cells = []
    for key in common:
        config = earlier[key][0].config
        label = labels[series.key(series.settings(config))]
        name = f"{counted(config.workers, 'worker')}, {config.train_samples:,} samples"
        earlier_step, earlier_speedup = _measured(earlier[key])
        later_step, later_speedup = _measured(later[key])
        change = later_step.quotient(earlier_step).estimate(level)
        relative_change = None
        if earlier_speedup is not None and later_speedup is not None:
            relative_change = earlier_speedup.quotient(later_speedup).estimate(level)
        cells.append(Cell(f"{label}, {name}" if label else name, change, relative_change))
    return Changes(cells, len(earlier.keys() ^ later.keys()), failed)


def differences(first: Settings, second: Settings) -> str:
    """The first settings in which two jobs differ, in words; "" if they are the same."""
    names = [name for name in first if name in second and first[name] != second[name]]
    return ", ".join(f"{name.removesuffix('.name')}={first[name]} against {second[name]}" for name in names[:3])


def _settings(config: JobConfig) -> Settings:
    """What jobs must share to be compared. The code and the files may differ."""
    return {**series.settings(config), "workers": config.workers, "data.size": config.data.size}


def _configurations(folder: Path) -> tuple[dict[str, list[MeasuredJob]], list[str]]:
    """Return the successful jobs below a folder by their settings, and the names of the others."""
    jobs, unreadable = read_jobs([folder])
    configurations: dict[str, list[MeasuredJob]] = {}
    failed = []
    for job in jobs:
        if job.result.status == "ok":
            configurations.setdefault(series.key(_settings(job.config)), []).append(job)
        else:
            failed.append(job.name)
    if not configurations:
        raise ResultError(f"{folder}: no job there was measured to its end")
    return configurations, failed + [job.name for job in unreadable]


def _measured(jobs: Sequence[MeasuredJob]) -> tuple[Pooled, Pooled | None]:
    """Return the logs of a step's seconds, and of the speedup over the baseline of the same blocks if there is one."""
    speedup = over_baseline([Member(job) for job in jobs])
    return speedup.candidate.step, speedup.comparison.shown_log


def _refuse_other_machines(jobs: Sequence[MeasuredJob]) -> None:
    """Raise ResultError where the hardware differs. A new version of torch may be what is compared."""
    environments = [job.result.environment for job in jobs]
    machines = {
        (environment.cpu_model, environment.usable_cores, environment.memory_bytes >> 30)
        for environment in environments
    }
    if len(machines) > 1:
        parts = "; ".join(f"{model}, {cores} usable cores, {memory} GiB" for model, cores, memory in sorted(machines))
        raise ResultError(f"they were measured on different machines, whose times can't be compared: {parts}")
