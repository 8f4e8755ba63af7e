"""How many workers to use: the fastest choice, how sure that is, and what it costs if it is wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dpexp.analysis.intervals import Estimate
from dpexp.analysis.row import Row
from dpexp.errors import counted

DRAWS = 10_000
LEAST_REGRET = 0.0005  # of the time, that is worth a word
TOLERANCE, SURE = 0.05, 0.95  # a choice of fewer threads is named if it surely takes hardly more time


@dataclass(frozen=True)
class Choice:
    """The fastest of some options."""

    name: str
    row: Row | None  # of the workers; None where it is one process
    options: list[str]  # all of them
    probability: float  # that it is the fastest
    regret: float  # the expected share of time that is lost because another one is
    cheaper: str | None  # needs fewer threads, and surely at most TOLERANCE more time
    beyond: str = ""  # what has more threads than cores and may be faster, which is not compared

    def __str__(self) -> str:
        sure = f"{100 * self.probability:.0f} %" if self.probability < 0.995 else "more than 99 %"
        text = f"{self.name}, with a probability of {sure} (compared: {', '.join(self.options)})"
        if self.regret >= LEAST_REGRET:
            text += f"; if another is faster, that costs {100 * self.regret:.1f} % of the time on average"
        if self.cheaper is not None:
            text += f"; {self.cheaper}, with fewer threads, is at most {100 * TOLERANCE:.0f} % slower"
        if self.beyond:
            text += f"; {self.beyond}, with more threads than cores, may be faster"
        return text


@dataclass(frozen=True)
class _Option:
    name: str
    row: Row | None
    threads: int  # that it keeps busy
    log_speeds: np.ndarray  # draws of the log of its throughput over that of the sequential baseline


def choose(rows: Sequence[Row]) -> Choice | None:
    """Of one series at one data size: which number of workers, or threads of one process, trains fastest here.

    That counts all time, neighbours included. Each speedup is drawn from its interval (log-normal). What has more
    threads than cores is compared only if it surely is the fastest. None where there is no row with several workers, or
    no interval.
    """
    generator = np.random.default_rng(0)
    several = [row for row in rows if row.workers != 1 and not math.isnan(row.overall_speedup.low)]
    if not several:
        return None
    threads = several[0].baseline_threads or several[0].threads_per_worker or 1
    options = [_Option(_process(threads), None, threads, np.zeros(DRAWS))]
    best = min(several, key=lambda row: _width(row.overall_best_sequential_speedup))
    for row in several:
        draws = _draws(row.overall_speedup, generator)
        cores = 1 if row.strategy == "emulated" else row.workers or 1
        options.append(_Option(counted(row.workers or 1, "worker"), row, cores * (row.threads_per_worker or 1), draws))
        best_threads = row.best_sequential_threads
        if (
            row is best
            and best_threads not in (None, threads)
            and not math.isnan(row.overall_best_sequential_speedup.low)
        ):
            over = _draws(row.overall_best_sequential_speedup, generator)  # measured in pairs with it
            options.insert(1, _Option(_process(best_threads or 1), None, best_threads or 1, draws - over))
    speeds = np.array([option.log_speeds for option in options])
    wins = np.bincount(speeds.argmax(0), minlength=len(options)) / DRAWS
    crowded = np.array([option.row is not None and bool(option.row.oversubscribed) for option in options])
    apart = crowded & (wins < SURE) & ~crowded.all()
    beyond = [f"{options[at].name} ({100 * wins[at]:.0f} %)" for at in np.flatnonzero(apart & (wins >= 1 - SURE))]
    options = [option for option, is_apart in zip(options, apart, strict=True) if not is_apart]
    speeds = speeds[~apart]
    fastest = speeds.max(0)
    chosen = int(speeds.mean(1).argmax())  # the mean log: that little is known of an option is no reason to choose it
    enough = [(speeds[at] >= fastest - math.log1p(TOLERANCE)).mean() >= SURE for at in range(len(options))]
    fewer = [option for option, is_enough in zip(options, enough, strict=True) if is_enough]
    fewer = [option for option in fewer if option.threads < options[chosen].threads]
    return Choice(
        name=options[chosen].name,
        row=options[chosen].row,
        options=[option.name for option in options],
        probability=float((speeds.argmax(0) == chosen).mean()),
        regret=float(-np.expm1(speeds[chosen] - fastest).mean()),
        cheaper=min(fewer, key=lambda option: option.threads).name if fewer else None,
        beyond=" or ".join(beyond),
    )


def _process(threads: int) -> str:
    return f"one process with {counted(threads, 'thread')}"


def _width(estimate: Estimate) -> float:
    return math.inf if math.isnan(estimate.low) else estimate.high / estimate.low


def _draws(estimate: Estimate, generator: np.random.Generator) -> np.ndarray:
    low, value, high = (math.log(one) for one in (estimate.low, estimate.value, estimate.high))
    return generator.normal(value, (high - low) / 2 / 1.96, DRAWS)
