"""The gradient noise scale beside the samples that a target accuracy really takes, with two learning rate rules."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.setup import command, out
from dpexp.analysis.table import aggregate
from dpexp.analysis.table_row import at_most_samples
from dpexp.config.experiment import ExperimentConfig
from dpexp.noise_scale import largest_job, lines, scales

JOB = ["data.size=20000", "target_accuracy=0.88", "epochs=12", "measurement.best_sequential=false"]
RULES = ("none", "linear")


def run(rounds: int) -> None:
    """For each rule: measure samples to the target, estimate the noise scale, and print both."""
    for rule in RULES:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            learning = [f"optimizer.lr_rule={rule}", f"measurement.repeats={2 * rounds}", "measurement.precision=null"]
            command("-m", "workers=1,2,4", *JOB, *learning, folder=folder)
            rows = at_most_samples(aggregate([folder]).good)
            config = largest_job(folder, rows).config
            assert isinstance(config, ExperimentConfig)
            out.print(f"optimizer.lr_rule={rule}:")
            for line in lines(config, rows, scales(config, 4)):
                out.print(f"  {line}")
