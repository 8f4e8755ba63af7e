"""The number of threads with which one sequential process is fastest."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable

from dpexp.analysis.speedup import calm_seconds
from dpexp.config.experiment import ExperimentConfig
from dpexp.machine.environment import usable_cores
from dpexp.measurement.trainer import Trainer, Variant
from dpexp.measurement.user_files import fingerprint
from dpexp.words import counted

PROBE_UPDATES = 600  # with each number of threads

_found: dict[str, int] = {}  # by earlier jobs of this process that differ only in what doesn't matter


def best_threads(config: ExperimentConfig, trainer: Trainer, on_start: Callable[[], None]) -> int:
    """Tries powers of two and all usable cores in turns, each with several hundred updates.

    There is one answer for all jobs of this process that differ in workers, strategy, epochs or data size only.
    """
    settings = config.baseline().settings
    for name in ("threads_per_worker", "epochs", "seed", "checkpoint", "target_accuracy", "measurement"):
        del settings[name]
    del settings["data"]["size"]
    key = json.dumps([settings, trainer.input_shape, fingerprint(config)])
    if key not in _found:
        on_start()
        cores = usable_cores()
        epochs = math.ceil(PROBE_UPDATES / config.baseline().updates_per_epoch)
        variants = {
            counted(threads, "thread"): Variant(dataclasses.replace(config.baseline(threads), epochs=epochs))
            for threads in sorted({2**power for power in range(cores.bit_length())} | {cores})
        }
        trainings = trainer.train_in_turns(variants)
        best = min(trainings.values(), key=lambda training: calm_seconds([training])[0])
        _found[key] = best.threads
    return _found[key]
