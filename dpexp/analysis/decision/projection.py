"""Projections to more workers than were measured: the parts of a step, and an interval. Never a measurement.

A step of w workers consists of a worker's own work, waiting for the slowest of w, the exchange within a host, and
an all-reduce between hosts (see docs/decisions.md, "Beyond this machine").
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dpexp.analysis.decision.links import Link, ring_seconds
from dpexp.analysis.disturbance import FASTEST_QUANTILE, UNDISTURBED_RATIO
from dpexp.analysis.efficiency import useful_seconds
from dpexp.analysis.estimate import Estimate
from dpexp.analysis.table_row import Row
from dpexp.config.built_in import ONE_PROCESS
from dpexp.phases import PHASES

MAX_INTERVAL_RATIO = 5.0  # upper over lower end of an interval; wider projections are not reported
PROJECTION_FACTOR = 4  # the report projects to this many times the largest measured number of workers
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
    """The hosts of a projection: hosts like the measured one, joined by `link` (None: a single host)."""

    workers_per_host: int | None = None  # None: all on one host, with as many cores
    link: Link | None = None
    gradient_bytes: float = math.nan
    overlap: float = 0.0  # the share of the exchange between hosts that computation hides


@dataclass(frozen=True)
class Projection:
    """The projection to one number of workers. The interval combines all uncertainties."""

    workers: int
    hosts: int
    speedup: Estimate
    step_seconds: float
    parts: dict[str, float]  # seconds of a step

    @property
    def bottleneck(self) -> str:
        """The largest part other than the worker's own work."""
        return max((name for name in self.parts if name != OWN), key=lambda name: self.parts[name])


class StepModel:
    """A model of the parts of a step, from the rows of one series at one data size."""

    def __init__(self, rows: Sequence[Row]) -> None:
        """Raises ValueError if the rows lack phases."""
        usable = [row for row in rows if row.status == "ok" and not row.oversubscribed]
        usable = [row for row in usable if row.strategy not in ONE_PROCESS]
        known = {row.workers or 0: row for row in sorted(usable, key=lambda row: row.workers or 0)}
        with_phases = {workers: row for workers, row in known.items() if workers > 1 and len(row.phases) == len(PHASES)}
        self._parts = {workers: _parts(row) for workers, row in with_phases.items()}
        self._rows = {workers: row for workers, row in known.items() if workers == 1 or workers in self._parts}
        first = next((self._rows[workers] for workers in [*self._parts, *self._rows]), None)
        if first is None or not first.baseline_compute or not first.baseline_phases:
            raise ValueError("no row without oversubscription has the phases of one process and of several workers")
        self._compute = np.sort(first.baseline_compute)
        self._first = first  # the row whose baseline is used
        self._step = first.baseline_step_seconds
        self._computed_share = first.baseline_phases["compute"] / sum(first.baseline_phases.values())
        self._same_batch = first.batch_scope == "global"

    def project(self, workers: int, cluster: Cluster, error: float = 0.0) -> Projection:
        """Return the projected speedup of `workers`. Raises ValueError if it can't be projected.

        `error` is the log error of earlier projections.
        """
        on_host = min(workers, cluster.workers_per_host or workers)
        hosts = math.ceil(workers / on_host)
        useful, step = self._useful_seconds(workers, on_host), self._step
        waits = [wait + self._unexplained_wait(workers) for wait in self._waits(workers, useful)]
        local = self._local_exchange(on_host)
        between = (0.0, 0.0) if cluster.link is None else ring_seconds(hosts, cluster.gradient_bytes, cluster.link)
        latency, bandwidth = ((1 - cluster.overlap) * seconds for seconds in between)
        steps = [useful + waits[side] + local[side] + latency + bandwidth for side in (0, 1)]
        spread = math.exp(error) * self._precision(on_host)
        best, worst = (step * (1 if self._same_batch else workers) / seconds for seconds in steps)
        ideal = min(useful, step / (workers if self._same_batch else 1))
        parts = {
            OWN: ideal,
            SLOWER: useful - ideal,
            WAIT: sum(waits) / 2,
            LOCAL: sum(local) / 2,
            LATENCY: latency,
            BANDWIDTH: bandwidth,
        }
        speedup = Estimate(math.sqrt(best * worst), worst / spread, best * spread)
        return Projection(workers, hosts, speedup, sum(steps) / 2, parts)

    def check(self) -> dict[int, tuple[float, float]]:
        """Return the projected and the measured speedup of each worker count that smaller ones can project."""
        checked = {}
        for workers in self._parts:
            try:
                smaller = StepModel([row for count, row in self._rows.items() if count < workers])
                projected = smaller.project(workers, Cluster()).speedup.value
            except ValueError:  # the exchange is not known from one worker
                continue
            checked[workers] = (projected, self._rows[workers].speedup.value)
        return checked

    def _waits(self, workers: int, useful: float) -> tuple[float, float]:
        """Return the least and the most seconds of a step that a worker waits for the slowest one."""
        usual = self._compute
        if self._first.disturbed_share > 0:  # then `useful` is of undisturbed steps, too
            usual = usual[usual <= UNDISTURBED_RATIO * np.quantile(usual, FASTEST_QUANTILE)]
        least, most = (mean_of_slowest(workers, seconds) / usual.mean() - 1 for seconds in (usual, self._compute))
        return useful * self._computed_share * least, useful * self._computed_share * most

    def _unexplained_wait(self, workers: int) -> float:
        """The additional waiting at the nearest measured count, such as for barriers; it is assumed to stay."""
        near = max((count for count in self._parts if count <= workers), default=None)
        if near is None:
            return 0.0
        explained, _ = self._waits(near, useful_seconds(self._parts[near]))
        return max(0.0, self._parts[near]["wait"] - explained)

    def _useful_seconds(self, workers: int, on_host: int) -> float:
        """The useful seconds of a worker in a step."""
        measured = {1: self._step} | {count: useful_seconds(parts) for count, parts in self._parts.items()}
        if not self._same_batch:
            return measured[max(count for count in measured if count <= on_host)]
        if workers in measured:
            return measured[workers]
        return fit_line({1 / count: seconds for count, seconds in measured.items()}, 1 / workers)

    def _local_exchange(self, on_host: int) -> tuple[float, float]:
        """The least and the most seconds of a step that exchanging within a host may take."""
        if on_host == 1:
            return 0.0, 0.0
        known = {count: parts["communicate"] for count, parts in self._parts.items()}
        if not known:
            raise ValueError(
                "no row has the time of an exchange within a host: it needs workers=2, enough turns, and a strategy "
                "that separates waiting from exchanging (sync_dp, or a script)"
            )
        if len(known) == 1 and on_host not in known:
            ((count, seconds),) = known.items()
            least, most = sorted((seconds, seconds * (on_host - 1) / (count - 1)))
            return least, most
        others = {count - 1.0: seconds for count, seconds in known.items()}
        seconds = known[on_host] if on_host in known else fit_line(others, on_host - 1.0)
        return seconds, seconds

    def _precision(self, on_host: int) -> float:
        """Return the factor by which the nearest measured speedup may be off."""
        near = max((count for count in self._parts if count <= on_host), default=min(self._rows))
        speedup = self._rows[near].speedup
        return 1.0 if math.isnan(speedup.low) else 1 + speedup.precision


def mean_of_slowest(workers: int, seconds: np.ndarray) -> float:
    """Return the mean time of the slowest of `workers`, if each draws from these sorted seconds."""
    passed = np.linspace(0, 1, len(seconds) + 1)
    return float(seconds @ np.diff(passed**workers))


def worst_error(checked: dict[int, tuple[float, float]]) -> float:
    """The largest log error of the checked projections; 0 if none was checked."""
    return max((abs(math.log(projected / measured)) for projected, measured in checked.values()), default=0.0)


def project_further(rows: Sequence[Row]) -> Projection | None:
    """Project to PROJECTION_FACTOR times as many workers as measured, on one host; None if too little is known."""
    max_workers = max((row.workers or 1 for row in rows if not row.oversubscribed), default=1)
    try:
        model = StepModel(rows)
        projection = model.project(PROJECTION_FACTOR * max_workers, Cluster(), worst_error(model.check()))
    except ValueError:
        return None
    is_useful = max_workers > 1 and projection.speedup.high < MAX_INTERVAL_RATIO * projection.speedup.low
    return projection if is_useful else None


def fit_line(points: Mapping[float, float], at: float) -> float:
    """Return the value at `at` of the least-squares line with intercept and slope >= 0 (for one point: through 0)."""
    from scipy.optimize import nnls  # slow to import, and rarely needed

    if len(points) == 1:
        ((place, value),) = points.items()
        return value / place * at
    start, slope = nnls(np.array([[1.0, place] for place in points]), np.array(list(points.values())))[0]
    return float(start + slope * at)


def _parts(row: Row) -> dict[str, float]:
    """The phases of a step, in seconds of one worker."""
    total = sum(row.phases.values())
    return {phase: row.step_seconds * seconds / total for phase, seconds in row.phases.items()}
