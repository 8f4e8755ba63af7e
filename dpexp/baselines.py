"""What a configuration's speedup is over: the paired baseline, else the jobs of one worker."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from dpexp.recorded import Job
from dpexp.results import Block, Training
from dpexp.stats import Estimate, paired_ratio, unpaired_ratio


@dataclass(frozen=True)
class Baseline:
    """What a configuration's speedup is over."""

    name: str
    trainings: list[Training]
    speedup: Estimate


def baseline(group: Sequence[Job], singles: SingleWorkers) -> Baseline:
    """The sequential trainings of the same blocks, else the workers=1 jobs of the same settings.

    Speedup is the ratio of throughputs. For equal samples that is T(sequential) / T(w); in weak scaling,
    where w workers see w times the baseline's samples, it is w T(1) / T(w) (Gustafson 1988).
    """
    config = group[0].config
    blocks = kept_blocks(group)
    pairs = [(block.baseline, block.candidate) for block in blocks if block.baseline is not None]
    if pairs:
        seconds = [own.seconds for own, _ in pairs], [own.seconds for _, own in pairs]
        ratio = paired_ratio(*seconds, pilot=config.measurement.pilot)
        return Baseline("sequential in the same blocks", [own for own, _ in pairs], ratio.scaled(config.work_ratio))
    single = singles.of(group[0])
    trainings = [block.candidate for block in kept_blocks(single)]
    if not single:
        return Baseline("none", trainings, Estimate(math.nan, math.nan, math.nan))
    if single[0].key == group[0].key:
        return Baseline("itself", trainings, Estimate(1.0, math.nan, math.nan))
    ratio = unpaired_ratio([own.seconds for own in trainings], [block.candidate.seconds for block in blocks])
    return Baseline(f"{single[0].config.strategy.name} workers=1 job", trainings, ratio.scaled(config.work_ratio))


@dataclass(frozen=True)
class SingleWorkers:
    """The good workers=1 jobs, found by all settings but the strategy."""

    jobs: dict[str, list[Job]]

    @classmethod
    def among(cls, good: Sequence[Job]) -> SingleWorkers:
        """Those of the given jobs."""
        jobs: dict[str, list[Job]] = {}
        for job in good:
            if job.config.workers == 1:
                jobs.setdefault(cls._key(job, job.config.strategy.name), []).append(job)
        return cls(jobs)

    def of(self, job: Job) -> list[Job]:
        """Those of the same configuration and strategy, else of the sequential one."""
        names = (job.config.strategy.name, "sequential")
        return next((found for name in names if (found := self.jobs.get(self._key(job, name)))), [])

    @staticmethod
    def _key(job: Job, strategy: str) -> str:
        settings = {name: value for name, value in job.series.items() if not name.startswith("strategy.")}
        return json.dumps([settings, job.config.data.size, strategy])


def kept_blocks(jobs: Sequence[Job]) -> list[Block]:
    """The blocks of all jobs that count."""
    return [block for job in jobs for block in job.result.kept()]
