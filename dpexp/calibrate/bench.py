"""One job on this machine, trained with or without faults."""

from __future__ import annotations

import dataclasses
import itertools
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from dpexp.analysis.intervals import Estimate, geometric_mean
from dpexp.analysis.ratios import compare
from dpexp.analysis.side import Side
from dpexp.calibrate.faults import NONE, Fault, FaultyLauncher
from dpexp.config.compose import compose_experiment, compose_job
from dpexp.config.experiment import ExperimentConfig
from dpexp.config.script import ScriptConfig
from dpexp.data.dataset import Dataset, load
from dpexp.measurement import script_trainer
from dpexp.measurement.budget import Budget
from dpexp.measurement.loop_trainer import LoopTrainer
from dpexp.measurement.measure import measure
from dpexp.measurement.trainer import Trainer, Variant
from dpexp.models import architectures, linear_kernels
from dpexp.models.initial_state import initial_state
from dpexp.processes import fork_server
from dpexp.processes.shared_memory import SharedTensors
from dpexp.results.schema import Block

JOB = ("data.size=20000", "epochs=2", "measurement.best_sequential=false", "measurement.precision=0.002")
SCRIPT = Path(__file__).parent / "script.py"
FIRST, SECOND = "first", "second"
LEVEL = 0.99  # of intervals: of so many checks, hardly one shall fail by chance


@dataclass(frozen=True)
class Contender:
    """One arm of a check."""

    config: ExperimentConfig
    fault: Fault = NONE


class Bench:
    """Data and initial state of the job, loaded once."""

    def __init__(self) -> None:
        config = self.config("workers=1")
        self._dataset: Dataset = load(config)
        self._initial: SharedTensors = initial_state(config, self._dataset)
        model = architectures.build(config.model, self._dataset.input_shape, self._dataset.classes)
        self._kernel = linear_kernels.choose(config, model)
        fork_server.start_server()

    def config(self, *overrides: str) -> ExperimentConfig:
        """The job, composed with `overrides`."""
        return compose_experiment(*JOB, *overrides)

    def blocks(self, seconds: float, **contenders: Contender) -> list[Block]:
        """Blocks of these arms, for so long in all."""
        config = next(iter(contenders.values())).config
        launcher = FaultyLauncher({name: contender.fault for name, contender in contenders.items()})
        trainer = LoopTrainer(config, self._dataset, self._initial, launcher, self._kernel)
        return _measured(trainer, {name: Variant(one.config) for name, one in contenders.items()}, seconds)

    def ratio(self, first: Contender, second: Contender, seconds: float) -> Estimate:
        """Time of the first over time of the second."""
        blocks = self.blocks(seconds, first=first, second=second)
        return compare([blocks], FIRST, SECOND, LEVEL).shown

    def script_against_itself(self, seconds: float) -> Estimate:
        """A script of one process, measured from outside, twice."""
        command = f"script.command='{sys.executable} {SCRIPT} {{workers}}'"
        config = compose_job("workers=1", "measurement.precision=0.002", command)
        assert isinstance(config, ScriptConfig)
        with tempfile.TemporaryDirectory() as folder:
            trainer = script_trainer.ScriptTrainer(config, Path(folder))
            blocks = _measured(trainer, {FIRST: Variant(config), SECOND: Variant(config)}, seconds)
        return compare([blocks], FIRST, SECOND, LEVEL).shown

    def segments_and_trainings(self, config: ExperimentConfig, pairs: int) -> Estimate:
        """The time of a training as steps in turns tell it, over that of whole trainings, in turn."""
        trainer = LoopTrainer(config, self._dataset, self._initial, FaultyLauncher({}), self._kernel)
        trainer.get_ready(config, ())
        ratios = []
        for _ in range(pairs):
            whole = trainer.train(config, None)
            blocks = _measured(trainer, {FIRST: Variant(config)}, 1.5, blocks=1)
            ratios.append(Side(config, blocks, FIRST, float("inf"), ()).seconds.value / whole.seconds)
        return geometric_mean(ratios, LEVEL)


def _measured(trainer: Trainer, variants: dict[str, Variant], seconds: float, blocks: int | None = None) -> list[Block]:
    """As many blocks as that time allows, or just so many."""
    config = next(iter(variants.values())).config
    settings = dataclasses.replace(config.measurement, max_seconds=seconds, precision=None if blocks else 1e-4)
    trainer.get_ready(config, ())
    first, *_, last = [*variants, *variants]
    budget = Budget(settings, config.usual_seconds, first if len(variants) > 1 else None, last)
    found = measure(trainer, variants, budget, settings.warmup_steps)
    return list(itertools.islice(found, blocks))
