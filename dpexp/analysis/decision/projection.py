"""What more workers than were measured would do: a step's parts, each projected, and a band. Never a measurement.

A step of w workers takes a worker's own work, waiting for the slowest of w, the exchange within a host, and an
all-reduce between hosts. The own work is the measured one. How long the slowest of w computes follows from the
distribution of measured computation times. The exchange within a host is a line through the measured counts; from a
single one, anything between staying the same and growing with the other workers. Between hosts, see links.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dpexp.analysis.decision.links import Exchange, Link, ring
from dpexp.analysis.disturbance import FASTEST, LONGER
from dpexp.analysis.intervals import Estimate
from dpexp.analysis.row import Row

OWN, SLOWER, WAIT, LOCAL, LATENCY, BANDWIDTH = (
    "the worker's share of the work",
    "computation that gets slower beside other workers",
    "waiting for the slowest worker",
    "exchanging within a host",
    "the latency between hosts",
    "the bandwidth between hosts",
)


@dataclass(frozen=True)
class Cluster:
    """The machines that are projected to: hosts like the measured one, joined by `link` (None: a single host)."""

    workers_per_host: int | None = None  # None: all on one host, with as many cores
    link: Link | None = None
    gradient_bytes: float = math.nan
    overlap: float = 0.0  # the share of the exchange between hosts that computation hides

    def hosts(self, workers: int) -> int:
        """How many are needed."""
        return 1 if self.workers_per_host is None else math.ceil(workers / self.workers_per_host)

    def exchange(self, hosts: int) -> Exchange:
        """The all-reduce of so many, each for all of its workers."""
        return Exchange(0.0, 0.0) if self.link is None else ring(hosts, self.gradient_bytes, self.link)


@dataclass(frozen=True)
class Projection:
    """One number of workers. The interval reaches from all that may be worse to all that may be better."""

    workers: int
    hosts: int
    speedup: Estimate
    step_seconds: float
    parts: dict[str, float]  # seconds of a step

    @property
    def efficiency(self) -> Estimate:
        """Speedup / workers."""
        return self.speedup.scaled(1 / self.workers)

    @property
    def bottleneck(self) -> str:
        """What takes the most time beside the worker's own work."""
        return max((name for name in self.parts if name != OWN), key=lambda name: self.parts[name])


class StepModel:
    """The parts of a step, as the rows of one series at one data size tell them."""

    def __init__(self, rows: Sequence[Row]) -> None:
        """Raises ValueError where they don't tell."""
        good = [row for row in rows if row.status == "ok" and not row.oversubscribed and row.strategy != "emulated"]
        self._rows = {
            row.workers or 0: row for row in good if row.workers == 1 or not math.isnan(row.phases.total_seconds)
        }
        several = [row for workers, row in sorted(self._rows.items()) if workers > 1]
        first = next(iter([*several, *self._rows.values()]), None)
        if first is None or not first.baseline_compute or math.isnan(first.phases.baseline_total_seconds):
            raise ValueError(
                "no row tells what the steps of one process and of workers are made of, without oversubscription"
            )
        self._compute = np.sort(first.baseline_compute)
        self._is_disturbed = first.disturbed_share > 0
        self.baseline_step = first.baseline_step_seconds
        self._computed_share = first.phases.baseline_compute_seconds / first.phases.baseline_total_seconds
        self._same_batch = first.batch_scope == "global"
        self._baseline_batch = (first.local_batch_size or 1) * ((first.workers or 1) if self._same_batch else 1)

    @property
    def counts(self) -> list[int]:
        """The measured worker counts that are used."""
        return sorted(self._rows)

    def without(self, workers: int) -> StepModel:
        """The model of the rows with fewer workers. Raises ValueError."""
        return StepModel([row for count, row in self._rows.items() if count < workers])

    def project(self, workers: int, cluster: Cluster, error: float = 0.0) -> Projection:
        """The speedup of so many workers; `error` is the log error of earlier projections. Raises ValueError."""
        hosts = cluster.hosts(workers)
        on_host = min(workers, cluster.workers_per_host or workers)
        own = self._own(workers, on_host)
        waits = [wait + self._unexplained_wait(workers) for wait in self._waits(workers, own)]
        local = self._local_exchange(on_host)
        between = cluster.exchange(hosts)
        shown = 1 - cluster.overlap
        outside = shown * between.seconds
        steps = [own + waits[side] + local[side] + outside for side in (0, 1)]
        spread = math.exp(error) * self._precision(on_host)
        gained = self.baseline_step * (1 if self._same_batch else workers)
        best, worst = (gained / seconds for seconds in steps)
        ideal = min(own, self.baseline_step / (workers if self._same_batch else 1))
        parts = {
            OWN: ideal,
            SLOWER: own - ideal,
            WAIT: sum(waits) / 2,
            LOCAL: sum(local) / 2,
            LATENCY: shown * between.latency_seconds,
            BANDWIDTH: shown * between.bandwidth_seconds,
        }
        return Projection(
            workers=workers,
            hosts=hosts,
            speedup=Estimate(math.sqrt(best * worst), worst / spread, best * spread),
            step_seconds=sum(steps) / 2,
            parts=parts,
        )

    def check(self) -> dict[int, tuple[float, float]]:
        """Of each measured count that smaller ones can project: the projected and the measured speedup."""
        found = {}
        for workers in self.counts:
            if workers > 1:
                try:
                    projected = self.without(workers).project(workers, Cluster())
                except ValueError:  # the exchange is not known from one worker
                    continue
                found[workers] = (projected.speedup.value, self._rows[workers].speedup.value)
        return found

    def _waits(self, workers: int, own: float) -> tuple[float, float]:
        """The seconds of a step that a worker waits for the slowest: if all steps are calm, and with all of them."""
        calm = self._compute
        if self._is_disturbed:  # then `own` is of undisturbed steps, too
            calm = calm[calm <= LONGER * np.quantile(calm, FASTEST)]
        least, most = (mean_of_slowest(workers, each) / calm.mean() - 1 for each in (calm, self._compute))
        return own * self._computed_share * least, own * self._computed_share * most

    def _unexplained_wait(self, workers: int) -> float:
        """What the nearest measured count waited beyond that, as for barriers; it is carried on."""
        near = max((count for count in self.counts if 1 < count <= workers), default=None)
        if near is None:
            return 0.0
        row = self._rows[near]
        calm, _ = self._waits(near, _per_step(row, row.phases.useful_seconds))
        return max(0.0, _per_step(row, row.phases.wait_seconds) - calm)

    def _own(self, workers: int, on_host: int) -> float:
        """The useful seconds of a worker in a step."""
        measured = {count: _per_step(row, row.phases.useful_seconds) for count, row in self._rows.items() if count > 1}
        if not self._same_batch:
            near = [count for count in measured if count <= on_host]
            return measured[max(near)] if near else self.baseline_step
        if workers in measured:
            return measured[workers]
        points = {1: self.baseline_step} | measured
        design = np.array([[1.0, self._baseline_batch / count] for count in points])
        parts = _not_negative(design, list(points.values()))
        return float(parts[0] + parts[1] * self._baseline_batch / workers)

    def _local_exchange(self, on_host: int) -> tuple[float, float]:
        """The least and the most seconds of a step that exchanging within a host may take."""
        if on_host == 1:
            return 0.0, 0.0
        known = {
            count: _per_step(row, row.phases.communicate_seconds) for count, row in self._rows.items() if count > 1
        }
        if on_host in known:
            return known[on_host], known[on_host]
        if not known:
            raise ValueError(
                "no row tells what an exchange within a host takes: measure workers=2, too, with a strategy that tells "
                "waiting from exchanging, such as sync_dp"
            )
        if len(known) == 1:
            ((count, seconds),) = known.items()
            ends = sorted((seconds, seconds * (on_host - 1) / (count - 1)))
            return ends[0], ends[1]
        design = np.array([[1.0, count - 1.0] for count in known])
        line = _not_negative(design, list(known.values()))
        seconds = float(line[0] + line[1] * (on_host - 1))
        return seconds, seconds

    def _precision(self, on_host: int) -> float:
        """The factor that the measured speedup next to this may be off by."""
        near = [count for count in self.counts if 1 < count <= on_host]
        speedup = self._rows[max(near)].speedup if near else self._rows[min(self.counts)].speedup
        return 1.0 if math.isnan(speedup.low) else math.sqrt(speedup.high / speedup.low)


def mean_of_slowest(workers: int, seconds: np.ndarray) -> float:
    """How long the slowest of so many workers takes if each draws from these sorted seconds.

    The mean of the greatest of n independent draws is the sum of values times the difference of the n-th powers of the
    distribution function.
    """
    passed = np.linspace(0, 1, len(seconds) + 1)
    return float(seconds @ np.diff(passed**workers))


def worst_error(checked: dict[int, tuple[float, float]]) -> float:
    """The greatest log error of projections that were checked; 0 where none was."""
    return max((abs(math.log(projected / measured)) for projected, measured in checked.values()), default=0.0)


def knee(projections: Sequence[Projection]) -> Projection:
    """Where speedup x efficiency is greatest: beyond, a worker costs more than it brings (Eager et al. 1989)."""
    return max(projections, key=lambda one: one.speedup.value * one.efficiency.value)


def _not_negative(design: np.ndarray, values: list[float]) -> np.ndarray:
    """The least squares of design @ parameters - values, without negative parameters."""
    from scipy.optimize import nnls  # slow to import: few commands have the counts for it

    return np.asarray(nnls(design, np.array(values))[0])


def _per_step(row: Row, seconds_of_phases: float) -> float:
    """What these phases take of a step, in seconds of one worker."""
    return row.step_seconds * seconds_of_phases / row.phases.total_seconds
