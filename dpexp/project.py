"""Project the speedup of more workers than were measured, on hosts like the measured one.

Example: `python -m dpexp.project FOLDER --workers 8,64 --link 25Gbit/s,10us --workers-per-host 8`.
"""

import argparse
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from dpexp.analysis.decision.links import Link
from dpexp.analysis.decision.projection import Cluster, StepModel, worst_error
from dpexp.analysis.table import aggregate
from dpexp.analysis.table_row import Row, at_largest_data_size
from dpexp.entry_point import Parser, entry_point, show_line
from dpexp.errors import ConfigError, ResultError
from dpexp.report.sentences import describe_projection


@entry_point
def main(arguments: list[str]) -> int:
    """Print a projection for each number of workers; return the exit status."""
    parser = Parser(prog="python -m dpexp.project", description=__doc__)
    parser.add_argument("folder", type=Path, help="results of a sweep over workers")
    parser.add_argument("--workers", type=_parse_counts, metavar="8,64,512", required=True, help="numbers of workers")
    parser.add_argument(
        "--link", type=Link.parse, metavar="25Gbit/s,10us", help="between hosts: bandwidth and one-way latency"
    )
    parser.add_argument("--workers-per-host", type=int, metavar="N", help="default: all on one host with enough cores")
    parser.add_argument("--gradient-mb", type=float, metavar="MB", help="exchanged per step; default: the model's")
    overlap_help = "share of the exchange between hosts that overlaps with computation"
    parser.add_argument("--overlap", type=float, default=0.0, metavar="0..1", help=overlap_help)
    parser.add_argument("--series", help="which series, if the folder has several; see results.csv")
    options = parser.parse_args(arguments)
    _check_options(options)
    measured = aggregate([options.folder])
    if not measured.measured:
        raise ResultError(f"{options.folder} has no usable result: {measured.rows[0].problem}")
    rows = _select_series(measured.measured, options.folder, options.series)
    cluster = Cluster()
    if options.link is not None:
        size = rows[0].gradient_bytes if options.gradient_mb is None else options.gradient_mb * 1e6
        if size is None:
            raise ConfigError(
                "the size of a script's gradient is unknown: give --gradient-mb (4 bytes a float32 parameter)"
            )
        cluster = Cluster(options.workers_per_host, options.link, size, options.overlap)
    try:
        model = StepModel(rows)
        checked = model.check()
        projections = [model.project(workers, cluster, worst_error(checked)) for workers in options.workers]
    except ValueError as error:
        raise ResultError(f"can't project: {error}") from error
    show_line("projected, not measured:")
    for projection in projections:
        show_line(describe_projection(projection))
    if checked:
        show_line(_describe_checks(checked))
    return 0


def _describe_checks(checked: Mapping[int, tuple[float, float]]) -> str:
    parts = [
        f"{workers} workers: projected {expected:.2f}, measured {measured:.2f}"
        for workers, (expected, measured) in checked.items()
    ]
    return f"checked by projecting from smaller counts: {'; '.join(parts)}; the intervals allow for the largest error"


def _parse_counts(text: str) -> list[int]:
    counts = sorted({int(part) for part in text.split(",")}) if re.fullmatch(r"\d+(,\d+)*", text) else [0]
    if counts[0] < 2:
        raise argparse.ArgumentTypeError(f"{text}: write worker counts of at least 2, such as 8,64,512")
    return counts


def _check_options(options: argparse.Namespace) -> None:
    """Raise ConfigError for options that contradict each other, or are out of range."""
    if (options.link is None) != (options.workers_per_host is None):
        raise ConfigError("--link and --workers-per-host belong together: give both, or neither for a single host")
    if options.workers_per_host is not None and options.workers_per_host < 1:
        raise ConfigError(f"--workers-per-host {options.workers_per_host}: it must be at least 1")
    if not 0 <= options.overlap <= 1:
        raise ConfigError(f"--overlap {options.overlap}: it must be a share between 0 and 1")
    if options.gradient_mb is not None and not 0 < options.gradient_mb < math.inf:
        raise ConfigError(f"--gradient-mb {options.gradient_mb:g}: it must be above 0")
    if options.link is None and (options.overlap or options.gradient_mb is not None):
        raise ConfigError("--overlap and --gradient-mb describe the exchange between hosts: give --link, too")


def _select_series(rows: Sequence[Row], folder: Path, series: str | None) -> list[Row]:
    """Return the rows of one series at its largest data size. Raises ResultError."""
    labels = sorted({row.series for row in rows})
    if series is None and len(labels) > 1:
        raise ResultError(f"{folder} has {len(labels)} series; choose one with --series: {'; '.join(labels)}")
    if series is not None and series not in labels:
        choices = "; ".join(label for label in labels if label)
        rule = f"choose from {choices}" if choices else "the folder has a single series; leave --series out"
        raise ResultError(f"--series {series}: {rule}")
    return at_largest_data_size([row for row in rows if series in (None, row.series)])


if __name__ == "__main__":
    sys.exit(main())
