"""Stock DistributedDataParallel over gloo and with gradients in shared memory, and one process, in turns."""

from __future__ import annotations

import tempfile
from pathlib import Path

from rich.table import Table

from benchmarks.setup import out, progress, shown
from dpexp.analysis.ratios import compare
from dpexp.config.compose import compose_job
from dpexp.launchers.local import LocalLauncher
from dpexp.measurement.job import measure_in_turns
from dpexp.report.command import measuring_alone

IMAGES = "data=synthetic data.shape=[3,32,32] data.size=2000"
CASES = {
    "MLP of 0.2 M parameters, 2 workers": "data.size=20000 workers=2",
    "the same, 4 workers": "data.size=20000 workers=4",
    "MLP of 2.9 M parameters, 2 workers": "data.size=20000 model.hidden=[1536,1024] workers=2",
    "cnn, 2 workers": "data.size=10000 model=cnn workers=2",
    "resnet18, 2 workers": f"{IMAGES} model=resnet18 batch.size=16 workers=2",
}
GLOO, MEMORY, ALONE, OURS = "gloo", "shared memory", "one process", "sync_dp"


def run(rounds: int) -> None:
    """Print how many times the samples a second of the others stock DDP has with gradients in shared memory."""
    table = Table(box=None)
    for head in ("throughput with shared memory over that of ...", GLOO, ALONE, OURS):
        table.add_column(head, justify="left" if "over" in head else "right")
    for name, case in CASES.items():
        progress.print(name)
        words = [*case.split(), f"measurement.max_seconds={15 * rounds}", "measurement.precision=0.005"]
        arms = {
            GLOO: compose_job(*words, "strategy=ddp"),
            ALONE: compose_job(*words, "strategy=ddp").baseline(),
            OURS: compose_job(*words, "strategy=sync_dp"),
            MEMORY: compose_job(*words, "strategy=ddp", "strategy.exchange=shared_memory"),
        }
        with tempfile.TemporaryDirectory() as folder, measuring_alone():
            blocks = measure_in_turns(arms, Path(folder), LocalLauncher())
        table.add_row(name, *(shown(compare([blocks], over=other, of=MEMORY).overall) for other in (GLOO, ALONE, OURS)))
    out.print(table)
    out.print()
