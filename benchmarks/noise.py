"""The gradient noise scale beside the samples that a target accuracy really takes, with two learning rate rules."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.setup import command, out

JOB = ["data.size=20000", "target_accuracy=0.88", "epochs=12", "measurement.best_sequential=false"]
RULES = ("none", "linear")


def run(rounds: int) -> None:
    """For each rule: measure samples to the target, estimate the noise scale, and print both."""
    for rule in RULES:
        with tempfile.TemporaryDirectory() as folder:
            learning = [f"optimizer.lr_rule={rule}", f"measurement.repeats={2 * rounds}", "measurement.precision=null"]
            command("-m", "workers=1,2,4", *JOB, *learning, folder=Path(folder))
            words = [sys.executable, "-m", "dpexp.noise_scale", folder]
            estimated = subprocess.run(words, capture_output=True, text=True, check=True)
            out.print(f"optimizer.lr_rule={rule}:")
            for line in estimated.stdout.splitlines():
                out.print(f"  {line}")
