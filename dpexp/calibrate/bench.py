"""One job on this machine, trained with or without a fault."""

from __future__ import annotations

from dpexp.analysis.stats import Estimate, paired_ratio
from dpexp.calibrate.faults import NONE, Fault, FaultyLauncher
from dpexp.config.compose import compose_experiment
from dpexp.config.experiment import ExperimentConfig
from dpexp.data.dataset import Dataset, load
from dpexp.measurement.blocks import measure
from dpexp.measurement.trainer import train_world
from dpexp.models import architectures, linear_kernels
from dpexp.models.initial_state import initial_state
from dpexp.processes import fork_server
from dpexp.processes.shared_memory import SharedTensors
from dpexp.results.schema import Block, Training
from dpexp.training.worker import Work

JOB = ("data.size=10000", "epochs=1", "measurement.best_sequential=false")


class Bench:
    """Data and initial state of the job, loaded once."""

    def __init__(self) -> None:
        self._dataset: Dataset = load(self.config("workers=1"))
        self._initial: SharedTensors = initial_state(self.config("workers=1"), self._dataset)
        fork_server.start_server()

    def config(self, *overrides: str) -> ExperimentConfig:
        """The job, composed with `overrides`."""
        return compose_experiment(*JOB, *overrides)

    def train(self, config: ExperimentConfig, fault: Fault = NONE) -> Training:
        """One training by fresh processes."""
        model = architectures.build(config.model, self._dataset.input_shape, self._dataset.classes)
        kernel = linear_kernels.choose(config, model)
        work = Work(config, self._dataset, self._initial, kernel, evaluate=False, checkpoint=None)
        return train_world(work, lambda epoch: None, FaultyLauncher([fault]))

    def ratio(
        self, first: tuple[ExperimentConfig, Fault], second: tuple[ExperimentConfig, Fault], blocks: int
    ) -> Estimate:
        """Time of the first over time of the second, from interleaved blocks, with a 99 % interval."""
        seconds: dict[int, list[float]] = {0: [], 1: []}
        for number in range(blocks):
            for side in (0, 1) if number % 2 == 0 else (1, 0):
                seconds[side].append(self.train(*(first, second)[side]).seconds)
        return paired_ratio(seconds[0], seconds[1], level=0.99)

    def blocks(self, config: ExperimentConfig, launcher: FaultyLauncher) -> list[Block]:
        """A whole job, as the command line measures it."""
        return list(measure(config, self._dataset, self._initial, None, lambda text, done: None, launcher))
