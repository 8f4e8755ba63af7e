"""How many workers to use: the fastest choice, its probability, and the cost of a wrong choice."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dpexp.analysis.estimate import Estimate
from dpexp.analysis.table_row import Row
from dpexp.config.built_in import ONE_PROCESS
from dpexp.errors import pluralize

DRAWS = 10_000
NORMAL_QUANTILE = 1.96  # for 95 % intervals; intervals from few blocks are wider (Student's t), so they are drawn wider
MIN_EXPECTED_COST = 0.0005  # share of the time; a smaller expected cost is not reported
TOLERANCE = 0.05  # share of the time; an option with fewer threads is named if it surely takes at most this much more
SURE_PROBABILITY = 0.95


@dataclass(frozen=True)
class Choice:
    """The fastest of the compared options."""

    name: str
    row: Row | None  # the row of these workers; None for one process
    options: list[str]  # all of them
    probability: float  # probability of being the fastest
    expected_cost: float  # expected share of the time lost by choosing it, over all draws
    cheaper: str | None  # needs fewer threads, and with probability SURE_PROBABILITY at most TOLERANCE more time

    def __str__(self) -> str:
        sure = f"{100 * self.probability:.0f} %" if self.probability < 0.995 else "more than 99 %"
        text = f"{self.name}, with a probability of {sure} (compared: {', '.join(self.options)})"
        if self.expected_cost >= MIN_EXPECTED_COST:
            text += f"; expected cost of this choice: {100 * self.expected_cost:.1f} % of the time"
        if self.cheaper is not None:
            text += f"; {self.cheaper}, with fewer threads, is at most {100 * TOLERANCE:.0f} % slower"
        return text


@dataclass(frozen=True, eq=False)
class _Option:
    name: str
    row: Row | None
    threads: int  # threads that it keeps busy
    log_speeds: np.ndarray  # draws of the log of its speedup over the baseline


def choose(rows: Sequence[Row]) -> Choice | None:
    """Return the fastest option at one data size: a row, or one process with a number of threads.

    All time counts. Each speedup is drawn from its interval (log-normal). An option with more threads than cores is
    compared only if it is surely the fastest. None if no row other than baselines has an interval.
    """
    compared = [row for row in rows if not row.is_self_comparison and not math.isnan(row.overall_speedup.low)]
    if not compared:
        return None
    options = _options(compared)
    wins = np.bincount(np.argmax([option.log_speeds for option in options], 0), minlength=len(options)) / DRAWS
    options = [
        option
        for option, win in zip(options, wins, strict=True)
        if option.row is None or not option.row.oversubscribed or win >= SURE_PROBABILITY
    ]
    # By the mean log: an uncertain speedup is no reason to choose an option.
    chosen = max(options, key=lambda option: float(option.log_speeds.mean()))
    fastest = np.max([option.log_speeds for option in options], 0)
    behind = {option: fastest - option.log_speeds for option in options}
    cheaper = [
        option
        for option in options
        if option.threads < chosen.threads and (behind[option] <= math.log1p(TOLERANCE)).mean() >= SURE_PROBABILITY
    ]
    return Choice(
        name=chosen.name,
        row=chosen.row,
        options=[option.name for option in options],
        probability=float((behind[chosen] == 0).mean()),
        expected_cost=float(-np.expm1(-behind[chosen]).mean()),
        cheaper=min(cheaper, key=lambda option: option.threads).name if cheaper else None,
    )


def _options(compared: Sequence[Row]) -> list[_Option]:
    """Return the options: one process, one process with the best number of threads, and each number of workers."""
    generator = np.random.default_rng(0)
    threads = compared[0].baseline_threads or compared[0].threads_per_worker or 1
    arguments = f" and {compared[0].baseline_arguments}" if compared[0].baseline_arguments else ""
    options = [_Option(_process(threads) + arguments, None, threads, np.zeros(DRAWS))]
    drawn = [_draws(row.overall_speedup, generator) for row in compared]
    known = [at for at, row in enumerate(compared) if not math.isnan(row.overall_best_sequential_speedup.low)]
    if known:
        best = min(known, key=lambda at: compared[at].overall_best_sequential_speedup.precision)
        best_threads = compared[best].best_sequential_threads or threads
        if best_threads != threads:
            over = _draws(compared[best].overall_best_sequential_speedup, generator)  # measured in pairs with it
            options.append(_Option(_process(best_threads) + arguments, None, best_threads, drawn[best] - over))
    for row, log_speeds in zip(compared, drawn, strict=True):
        workers = row.workers or 1
        busy = (1 if row.strategy in ONE_PROCESS else workers) * (row.threads_per_worker or 1)
        options.append(_Option(row.option, row, busy, log_speeds))
    return options


def _process(threads: int) -> str:
    return f"one process with {pluralize(threads, 'thread')}"


def _draws(estimate: Estimate, generator: np.random.Generator) -> np.ndarray:
    return generator.normal(math.log(estimate.value), math.log1p(estimate.precision) / NORMAL_QUANTILE, DRAWS)
