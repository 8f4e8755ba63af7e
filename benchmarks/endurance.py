"""What long use leaves behind, and how fast faults are found: launches with random kills, many jobs, many results."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from pydantic import TypeAdapter
from rich.table import Table

from benchmarks.setup import out
from dpexp.cli.api import sweep as measure_sweep
from dpexp.config.built_in import BuiltInConfig
from dpexp.results import storage
from testbed.endurance import TINY, Census, soak

LAUNCHES, JOBS, RESULTS, MAIN_KILLS = 500, 200, 10_000, 20
EXAMPLE = Path(__file__).parent.parent / "outputs" / "example"
MIB = 2**20
CONFIGS = TypeAdapter(BuiltInConfig)


def run() -> None:
    """Print all of it."""
    _print_soak(LAUNCHES, seed=0)
    out.print()
    _print_main_kills(MAIN_KILLS)
    out.print()
    _print_jobs(JOBS)
    out.print()
    _print_aggregation(RESULTS)


def _print_soak(launches: int, seed: int) -> None:
    soak(2, seed)  # what is made once is there
    before = Census.take()
    outcomes, seconds = soak(launches, seed)
    out.print(f"{launches} trainings in a row by 1 to 4 workers; in every second one a random worker is sent SIGKILL")
    for outcome, count in sorted(outcomes.items()):
        out.print(f"  {count} {outcome}")
    out.print(
        f"  from the kill to the error: median {1000 * statistics.median(seconds):.0f} ms, "
        f"at most {1000 * max(seconds):.0f} ms"
    )
    _compare(before, Census.take())


def _compare(before: Census, after: Census) -> None:
    table = Table(box=None)
    for head in ("", "start", "end"):
        table.add_column(head, justify="right" if head else "left")
    for name in vars(before):
        table.add_row(name.replace("_", " "), str(getattr(before, name)), str(getattr(after, name)))
    out.print(table)


MAIN = """
import dataclasses
from benchmarks.setup import configured, prepared
from dpexp.launchers.local import LocalLauncher
from dpexp.processes.turn import Turn
from dpexp.train.data.dataset import load
from testbed.endurance import TINY
config = configured(*TINY, "workers=4", "epochs=100000")
spec = dataclasses.replace(prepared(config, load(config)), in_turns=True)
with LocalLauncher().segments({"candidate": spec}) as running:
    print(running.run_turn("candidate", Turn(0, 1)), flush=True)
    running.run_turn("candidate", Turn(0, 10**9))
"""


def _print_main_kills(kills: int) -> None:
    """The seconds from the main process's death until no worker, and nobody at all, is left; some are stopped."""
    of_workers: list[float] = []
    of_all: list[float] = []
    for number in range(kills):
        main = subprocess.Popen([sys.executable, "-c", MAIN], stdout=subprocess.PIPE)
        assert main.stdout is not None
        main.stdout.readline()
        others = psutil.Process(main.pid).children(recursive=True)
        workers = [one for child in psutil.Process(main.pid).children() for one in child.children()]
        if number % 2:
            workers[-1].send_signal(signal.SIGSTOP)
        started = time.monotonic()
        main.send_signal(signal.SIGKILL)
        for processes, seconds in ((workers, of_workers), (others, of_all)):
            while not all(map(_is_dead, processes)):
                assert time.monotonic() < started + 30
                time.sleep(0.002)
            seconds.append(time.monotonic() - started)
        main.wait()
        main.stdout.close()
    out.print(
        f"the main process of 4 workers killed {kills} times, every second time with a stopped worker:\n"
        f"  no worker lived after {1000 * statistics.median(of_workers):.0f} ms in the median, "
        f"{1000 * max(of_workers):.0f} ms at most; nobody at all after {1000 * max(of_all):.0f} ms"
    )


def _is_dead(process: psutil.Process) -> bool:
    """Also where nobody has asked for its exit status yet."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _print_jobs(jobs: int) -> None:
    """One sweep of many jobs in this process; a smaller one first, so that what is made once is there."""
    out.print(f"a sweep of {jobs} tiny jobs, 2 workers each")
    sweep(5)
    before = Census.take()
    sweep(jobs)
    _compare(before, Census.take())


def sweep(jobs: int) -> None:
    """Run it in this process, and check that every job succeeded."""
    alike = ",".join(str(300 + job) for job in range(jobs))  # what makes no other configuration: one row, few figures
    quick = [
        "measurement.repeats=1",
        "measurement.precision=null",
        "measurement.best_sequential=false",
        "measurement.max_seconds=0.4",
    ]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        table = measure_sweep(*TINY, *quick, f"launch.timeout_seconds={alike}", folder=folder)
        assert set(table["status"]) == {"ok"}
        assert len(list(Path(folder).glob("*/result.json"))) == jobs


def copies_of_example(folder: Path, count: int) -> Iterator[Path]:
    """So many results of the size of real ones: those of the example, with seeds that make 120 of each pool."""
    originals = [json.loads(path.read_text()) for path in sorted(EXAMPLE.glob("*/result.json"))]
    for number in range(count):
        values = originals[number % len(originals)]
        values["config"]["seed"] = number // (10 * len(originals))
        config = CONFIGS.validate_json(json.dumps(values["config"]))
        job = folder / str(number)
        job.mkdir()
        (job / storage.FILE_NAME).write_text(json.dumps(values | {"config_sha256": config.sha256}, indent=1))
        yield job


AGGREGATE = """
import sys, time
from pathlib import Path
from dpexp.analysis.table import aggregate  # no torch: that alone takes 600 MiB
started = time.perf_counter()
rows = len(aggregate([Path(sys.argv[1])]).table)
seconds = time.perf_counter() - started
status = Path("/proc/self/status").read_text()  # getrusage would tell the most that the parent ever had
memory = int(status.partition("VmHWM:")[2].split()[0]) / 1024
print(f"aggregated into {rows:,} rows in {seconds:.1f} s with {memory:.0f} MiB")
"""


def _print_aggregation(count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        total = sum((job / storage.FILE_NAME).stat().st_size for job in copies_of_example(Path(folder), count))
        printed = subprocess.run(
            [sys.executable, "-c", AGGREGATE, folder], check=True, capture_output=True, text=True
        ).stdout
        out.print(f"{count:,} results, {total / MIB:.0f} MiB: {printed.strip()}")
