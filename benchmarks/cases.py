"""Nine programs that are easily measured wrongly, in `cases/`: dpexp's answer, the truth, and whether they agree.

Where a speedup is asked for, the truth is that of plain runs in the same minutes: before dpexp's command and after it.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.table import Table

from benchmarks import natural
from benchmarks.setup import TORCHRUN, command, dpexp, out, plain_rate, progress, shown
from dpexp.analysis.estimate import Estimate
from dpexp.analysis.table import aggregate

FOLDER = Path(__file__).parent / "cases"
JOB = ["workers=2", "measurement.best_sequential=false", "measurement.max_seconds=15"]
OWN_LOOP = "-m strategy=sync_dp,ddp workers=2 model=custom data.size=4000 epochs=1 measurement.max_seconds=3".split()
BATCH = "--batch {local_batch_size}"
BATCHES = "No speedup is known: in a step, the model receives 128 samples in each of 2 workers, and 256 in one process"
UNEVEN = "ranks that make different numbers of steps"
LEAST_DATA, TOLERANCE = 0.8, 0.1  # of a step that waits for a simulator; of shares
SAME_LOSS = 1e-4

Finding = tuple[str, str, bool]
"""What dpexp answered, what is true, and whether that is right."""
Judge = Callable[[Path], Finding]
"""Measures in a copy of the case's folder."""


def run() -> None:
    """Print a row for each case."""
    table = Table(box=None)
    for head in ("case", "what is right", "dpexp's answer", "the truth", "right?"):
        table.add_column(head)
    for name, right, judge in CASES:
        progress.print(f"{name}: {right}")
        with tempfile.TemporaryDirectory() as temporary:
            here = Path(shutil.copytree(FOLDER / name, Path(temporary) / name))
            try:
                answer, truth, is_right = judge(here)
            except RuntimeError as error:
                answer, truth, is_right = _last_line(str(error)), "", False
        table.add_row(name, right, answer, truth, "yes" if is_right else "NO")
    out.print(table)
    out.print()


def _script(program: str, batch: int, launch: str = TORCHRUN) -> list[str]:
    return [*JOB, f"batch.size={batch}", f"script.command={launch} {program}"]


def _last_line(text: str) -> str:
    return next(reversed(text.strip().splitlines()), "")


def _like_plain_runs(program: str, batch: int, launch: str = TORCHRUN) -> Judge:
    def judge(here: Path) -> Finding:
        def rate(processes: int) -> float:
            return plain_rate(program, batch, processes, launch, here)

        one, two = rate(1), rate(2)
        (row,), _ = command(*_script(program, batch, launch), where=here)
        return _compared(row.overall_speedup, [two / one, rate(2) / rate(1)])

    return judge


def _compared(speedup: Estimate, truths: Sequence[float]) -> Finding:
    """The interval must meet the range of the truths, widened by as much as they differ."""
    least, most = min(truths), max(truths)
    spread = most - least
    is_right = speedup.low <= most + spread and speedup.high >= least - spread
    return shown(speedup), f"{least:.2f} to {most:.2f}", is_right


def _random_depth(here: Path) -> Finding:
    """By whole trainings of the same command, and of another one after it."""
    first, second = (natural.of_random_depth() for _ in range(2))
    return _compared(first.overall, [first.truth, second.truth])


def _says(words: str, program: str, *settings: str) -> Judge:
    """An error or a line of the answer must have these words."""

    def judge(here: Path) -> Finding:
        said = dpexp(*_script(program, 256), *settings, folder=here / "out", where=here)
        lines = (said.stderr if said.returncode else said.stdout).splitlines()
        is_said = any(words in line for line in lines)
        return words if is_said else _last_line(said.stderr), "", is_said

    return judge


def _threads(here: Path) -> Finding:
    """The script gives one process both cores, and no line may say that it has as many threads as a worker."""
    said = dpexp(*_script(f"train.py {BATCH}", 256), folder=here / "out", where=here)
    if said.returncode:
        raise RuntimeError(said.stderr)
    row = aggregate([here / "out"]).measured[0]
    wrong = next(iter(re.findall("one process with as many threads as a worker", said.stdout)), "")
    shown_threads = f"threads of a worker {row.threads_per_worker}, of one process {row.baseline_threads}"
    cores = len(os.sched_getaffinity(0))
    is_right = (row.threads_per_worker, row.baseline_threads) == (max(1, cores // 2), cores) and not wrong
    return "; but ".join(filter(None, [shown_threads, wrong])), "half of the cores, and all", is_right


def _augmented(here: Path) -> Finding:
    """Without augmentation a step takes less time; all that is more belongs to data."""
    program = f"augment.py {BATCH}"

    def share() -> float:
        augmented, plain = (plain_rate(f"{program} {option}", 32, 1, "python", here) for option in ("", "--plain"))
        return 1 - augmented / plain

    before, found, after = share(), _data_share(here, program, 32), share()
    return _at_least(found, min(before, after) - TOLERANCE)


def _simulated(here: Path) -> Finding:
    return _at_least(_data_share(here, f"actors.py {BATCH}", 64), LEAST_DATA)


def _data_share(here: Path, program: str, batch: int) -> float:
    """Of a step of one process, as dpexp has it."""
    (row,), _ = command(*_script(program, batch), where=here)
    seconds = row.baseline_phases
    return seconds["data"] / sum(seconds.values())


def _at_least(share: float, least: float) -> Finding:
    return f"data {100 * share:.0f} % in one process", f"at least {100 * least:.0f} %", share >= least


def _complex(here: Path) -> Finding:
    """Both strategies keep them, and end with the same loss; or they refuse them by name."""
    answers, is_right = [], True
    for builder, name in (("rotary", "rotation"), ("spectral", "weight")):
        folder = here / builder
        job = [*OWN_LOOP, f"model.builder=mine:{builder}", "batch.size=32", "checkpoint=true"]
        said = dpexp(*job, folder=folder, where=here)
        kept = {torch.load(file, weights_only=True)[name].dtype for file in folder.glob("*/model.pt")}
        losses = [row.train_loss for row in aggregate([folder]).measured]
        is_kept = kept == {torch.complex64} and len(losses) == 2 and max(losses) - min(losses) < SAME_LOSS
        refusal = f"the parameter {name} of complex64"
        is_refused = said.returncode == 2 and refusal in said.stderr
        is_right &= is_kept or is_refused
        refused = refusal if is_refused else _last_line(said.stderr)
        answers.append(f"{builder}: {'kept' if is_kept else refused}")
    return "; ".join(answers), "", is_right


def _edited(here: Path) -> Finding:
    """Two series, which name the file."""
    job = [*_script(f"train.py {BATCH}", 128), "workers=1", "measurement.baseline=none", "measurement.repeats=1"]
    command(*job, folder=here / "out/before", where=here)
    net = here / "net.py"
    net.write_text(net.read_text().replace("WIDTH = 256", "WIDTH = 512"))
    command(*job, folder=here / "out/after", where=here)
    series = [row.series for row in aggregate([here / "out"]).measured]
    return "; ".join(series), "two series", len(series) == 2 and all("net.py=" in label for label in series)


CASES: list[tuple[str, str, Judge]] = [
    ("long-batches", "rare long steps count", _like_plain_runs(f"train.py {BATCH}", 16)),
    ("random-depth", "deep steps count", _random_depth),
    ("uneven-inputs", "named", _says(UNEVEN, f"train.py {BATCH}", "launch.timeout_seconds=30")),
    ("first-optimizer-retires", "measured on, of folds", _like_plain_runs(f"kfold.py {BATCH}", 256)),
    (
        "first-optimizer-retires",
        "measured on, after a search",
        _like_plain_runs(f"tuned.py --devices {{workers}} {BATCH}", 256, "python"),
    ),
    ("threads-by-script", "each side's threads are shown", _threads),
    ("total-batch", "the batch is named", _says(BATCHES, "train.py --batch-size {local_batch_size}")),
    ("modules-outside-the-model", "augmentation is data", _augmented),
    ("modules-outside-the-model", "waiting for a simulator is data", _simulated),
    ("complex-tensors", "kept, or refused by name", _complex),
    ("edited-import", "two series that name net.py", _edited),
]
