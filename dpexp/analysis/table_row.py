"""One row of the table: a configuration with all statistics of its blocks, or a job that failed."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from dpexp.analysis.efficiency import SecondsByPhase
from dpexp.analysis.estimate import UNKNOWN, Estimate
from dpexp.analysis.warnings import MeasurementWarning
from dpexp.phases import PHASES, USEFUL


@dataclass(frozen=True)
class Row:
    """One row of the table. Missing measurements are NaN or UNKNOWN; unknown settings are None.

    In `results.csv` an Estimate takes three columns (`speedup`, `speedup_low`, `speedup_high`), and each phase one
    (`compute_seconds`, `baseline_compute_seconds`).
    """

    status: str  # ok, failed, diverged, unfinished, missing, unreadable
    strategy: str | None = None
    workers: int | None = None
    threads_per_worker: int | None = None
    model: str | None = None
    data: str | None = None
    data_size: int | None = None  # training samples of an epoch, of all workers together
    data_scope: str | None = None
    exchange: str = ""  # of ddp and scripts: gloo, shared_memory; "": not chosen here
    batch_scope: str | None = None
    local_batch_size: int | None = None
    global_batch_size: int | None = None
    epochs: int | None = None
    seed: int | None = None
    updates: int | None = None
    baseline_updates: int | None = None
    repeats: int | None = None  # number of blocks
    seconds: Estimate = UNKNOWN  # time of a training: its samples times the time per sample, and time between epochs
    overall_seconds: float = math.nan  # `seconds` with all time counted
    trained_seconds: float = math.nan  # mean time of whole trainings
    samples_per_second: float = math.nan
    baseline_threads: int | None = None  # threads of the baseline's process; a script may set its own number
    arguments: str = ""  # a script's swept arguments, such as loaders=2
    baseline_arguments: str = ""  # the baseline's values of these arguments
    baseline_seconds: float = math.nan
    baseline_overall_seconds: float = math.nan
    baseline_trained_seconds: float = math.nan
    speedup: Estimate = UNKNOWN  # undisturbed if other programs slowed steps down, else overall
    overall_speedup: Estimate = UNKNOWN  # the speedup with all time counted
    disturbed_share: float = math.nan  # share of steps that `speedup` leaves out
    efficiency: Estimate = UNKNOWN
    best_sequential_threads: int | None = None
    best_sequential_seconds: float = math.nan
    best_sequential_speedup: Estimate = UNKNOWN  # speedup over the best sequential process
    overall_best_sequential_speedup: Estimate = UNKNOWN  # speedup over it, with all time counted
    shared_memory_speedup: Estimate = UNKNOWN  # throughput with gradients in shared memory over this row's
    gradient_bytes: int | None = None  # size of one process's gradient; None for a script
    memory_bytes: int | None = None  # peak of all processes together
    baseline_memory_bytes: int | None = None
    target_accuracy: float = math.nan
    target_seconds: float = math.nan
    baseline_target_seconds: float = math.nan
    target_speedup: float = math.nan
    target_throughput_ratio: float = math.nan
    target_samples_ratio: float = math.nan  # the baseline's samples over the candidate's
    parallel_efficiency: float = math.nan  # load_balance x communication_efficiency
    load_balance: float = math.nan
    communication_efficiency: float = math.nan
    computation_scaling: float = math.nan  # efficiency / parallel_efficiency
    slow_rank: int | None = None  # rank that the others wait for; None if it differs between steps
    slow_host: str = ""  # host of that rank, if there are several hosts
    slow_phase: str = ""  # phase in which that rank takes longer than the others
    slow_seconds: float = math.nan  # additional seconds of that phase in a typical step
    slow_share: float = math.nan  # share of the steps that the rank delays
    slow_loss: float = math.nan  # share of a typical step that this costs the others
    phases: SecondsByPhase = field(default_factory=dict)  # seconds of a training, of all processes together
    baseline_phases: SecondsByPhase = field(default_factory=dict)
    train_loss: float = math.nan  # loss of the last epoch
    test_accuracy: float = math.nan
    baseline_test_accuracy: float = math.nan
    oversubscribed: bool | None = None
    warnings: tuple[MeasurementWarning, ...] = ()
    problem: str = ""  # why the job has no usable result
    jobs: tuple[str, ...] = ()  # the folders of its jobs; `job` in results.csv
    series: str = ""  # label of the series; "" if there is only one
    configured_size: int | None = None  # data.size
    step_seconds: float = math.nan  # of a whole batch; this and all below are no columns
    baseline_step_seconds: float = math.nan
    baseline_compute: tuple[float, ...] = ()  # seconds of each recorded step, for projections
    comparison_key: str = ""  # equal for rows that may be compared
    has_other_baseline: bool = False  # whether a script's baseline is another command
    option: str = ""  # what distinguishes it from rows with the same comparison_key

    @property
    def is_script(self) -> bool:
        """Whether a script was measured, whose accuracy only its author knows."""
        return self.data == "script"

    @property
    def is_self_comparison(self) -> bool:
        """Whether the row is the same training as its baseline (A/A)."""
        is_alone = self.workers == 1 and self.baseline_threads in (None, self.threads_per_worker)
        return is_alone and self.arguments == self.baseline_arguments and not self.has_other_baseline

    def columns(self) -> dict[str, Any]:
        """Return the values of the row by the column names of `results.csv`."""
        columns: dict[str, Any] = {}
        for name, value in vars(self).items():
            if isinstance(value, Estimate):
                columns |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
            elif name == "jobs":
                columns["job"] = " + ".join(value)
            elif name in PHASE_COLUMNS:
                before = name.removesuffix("phases")
                columns |= {f"{before}{phase}_seconds": value.get(phase, math.nan) for phase in PHASE_COLUMNS[name]}
            else:
                columns[name] = value
        columns["warnings"] = self.problem or "; ".join(map(str, self.warnings))
        for name in ("problem", *NO_COLUMNS):
            del columns[name]
        return columns


def at_largest_data_size(rows: Sequence[Row]) -> list[Row]:
    """Return the rows at the largest data size."""
    largest = max((row.configured_size or 0 for row in rows), default=0)
    return [row for row in rows if row.configured_size == largest]


def at_largest_data_size_by_series(rows: Iterable[Row]) -> list[Row]:
    """Return the rows at the largest data size of their series, except baselines."""
    without_baselines = [row for row in rows if not row.is_self_comparison]
    return [
        row
        for _, of_one in groupby(without_baselines, lambda row: row.series)
        for row in at_largest_data_size(list(of_one))
    ]


PHASE_COLUMNS = {"phases": PHASES, "baseline_phases": USEFUL}  # columns of fields
_NAMES = [field.name for field in dataclasses.fields(Row)]
NO_COLUMNS = _NAMES[_NAMES.index("step_seconds") :]
INTEGER_COLUMNS = [column.name for column in dataclasses.fields(Row) if column.type == int | None]
