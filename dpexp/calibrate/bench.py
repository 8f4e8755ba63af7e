"""One job on this machine, trained with or without faults."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from dpexp.analysis.intervals import Estimate
from dpexp.analysis.speedup import ratio_of_times
from dpexp.calibrate.faults import NONE, Fault, FaultyLauncher
from dpexp.config.compose import compose_experiment
from dpexp.config.experiment import ExperimentConfig
from dpexp.data.dataset import Dataset, load
from dpexp.launchers.local import CANDIDATE
from dpexp.measurement.blocks import measure
from dpexp.measurement.loop_trainer import LoopTrainer, recorded
from dpexp.measurement.trainer import Variant
from dpexp.models import architectures, linear_kernels
from dpexp.models.initial_state import initial_state
from dpexp.processes import fork_server
from dpexp.processes.shared_memory import SharedTensors
from dpexp.results.schema import Block, Training
from dpexp.training.worker import Work

JOB = ("data.size=20000", "epochs=2", "measurement.best_sequential=false")


@dataclass(frozen=True)
class Arm:
    """One side of a comparison."""

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

    def train(self, **arms: Arm) -> dict[str, Training]:
        """A training of each arm by fresh processes, in turns."""
        launcher = FaultyLauncher({name: arm.fault for name, arm in arms.items()})
        trainer = LoopTrainer(self._dataset, self._initial, launcher, self._kernel)
        return trainer.train_in_turns({name: Variant(arm.config) for name, arm in arms.items()})

    def ratio(self, first: Arm, second: Arm, blocks: int) -> Estimate:
        """Time of the first over time of the second, from trainings in turns, with a 99 % interval."""
        orders = [{"first": first, "second": second}, {"second": second, "first": first}]
        trainings = [self.train(**orders[number % 2]) for number in range(blocks)]
        return ratio_of_times([(pair["first"], pair["second"]) for pair in trainings], level=0.99)

    def turns_and_one_piece(self, config: ExperimentConfig, blocks: int) -> tuple[Estimate, float]:
        """Time in turns over time in one piece, with a 99 % interval, and the seconds of a handover from turn to turn.

        The training has all turns to itself: between two of them there is the handover and nothing else.
        """
        launcher = FaultyLauncher({})
        work = Work(config, self._dataset, self._initial, self._kernel, evaluate=False, checkpoint=None)
        pairs, handovers = [], []
        for _ in range(blocks):
            in_turns = launcher.run_in_turns({CANDIDATE: work}, lambda done: None)[CANDIDATE]
            pairs.append((recorded(work, in_turns), recorded(work, launcher.run(work))))
            handovers.append(in_turns[0].handover_seconds / (len(in_turns[0].turn_seconds) - 1))
        return ratio_of_times(pairs, level=0.99), statistics.median(handovers)

    def blocks(self, config: ExperimentConfig, launcher: FaultyLauncher) -> list[Block]:
        """A whole job, as the command line measures it."""
        trainer = LoopTrainer(self._dataset, self._initial, launcher)
        return list(measure(config, trainer, None, lambda text, done: None))
