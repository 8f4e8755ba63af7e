"""One job: load the data, measure, train, record. Failures and interruptions are recorded, too."""

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from dpexp.config.built_in import BuiltInConfig
from dpexp.config.job import BASELINE, BEST_SEQUENTIAL, CANDIDATE, SHARED_MEMORY, JobConfig
from dpexp.config.script import ScriptConfig
from dpexp.errors import ConfigError, DataError, DivergedError, WorkerError, pluralize
from dpexp.launchers.local import LocalLauncher
from dpexp.machine.environment import Environment, available_memory_bytes, current_environment, usable_cores
from dpexp.measurement.blocks import OnProgress, run_blocks
from dpexp.measurement.budget import Budget
from dpexp.measurement.built_in_trainer import BuiltInTrainer
from dpexp.measurement.record import CHECKPOINT, Record
from dpexp.measurement.rounds import Rounds
from dpexp.measurement.script_trainer import ScriptTrainer
from dpexp.measurement.trainer import Trainer
from dpexp.measurement.user_files import changed_files, digests_of, fingerprint, refuse_changes
from dpexp.measurement.whole_trainings import WholeTrainings, arm_steps
from dpexp.results.schema import Block, JobResult

_log = logging.getLogger(__name__)

MIN_EXCHANGE_SHARE = 0.1  # share of a step; if exchanging gradients takes more, shared memory is tried
PROBE_SECONDS = 1.0  # how long the numbers of threads take turns


def open_trainer(config: JobConfig, folder: Path, launcher: LocalLauncher) -> Trainer:
    """Return a trainer for the arms of a job; `folder` receives the output of scripts.

    Raises ConfigError, DataError, WorkerError, ResultError.
    """
    if isinstance(config, ScriptConfig):
        return ScriptTrainer(config, folder, launcher.hosts)
    assert isinstance(config, BuiltInConfig)
    return BuiltInTrainer(config, launcher)


def measure_job(
    config: JobConfig,
    folder: Path,
    on_progress: OnProgress = lambda text, done: None,
    launcher: LocalLauncher | None = None,
    environment: Environment | None = None,
    user_files: dict[str, str] | None = None,
    record_bad_input: bool = True,
    earlier: JobResult | None = None,
) -> JobResult:
    """Measure `config`, write result.json into `folder`, replacing the one there, and return the result.

    `user_files` is the fingerprint that the job's files must keep until it ends. Arguments that are None are determined
    here. The blocks of an `earlier`, unfinished result are kept. Until the job ends, its result is an unfinished one.

    Raises the job's error. A WorkerError is recorded as a failed result, with the blocks finished until then and its
    traceback in error.log; a DivergedError as a diverged one. ConfigError and DataError are recorded with
    `record_bad_input`; else the result stays unfinished. A ResultError says that nothing can be recorded.
    """
    launcher = launcher or LocalLauncher()
    user_files = fingerprint(config) if user_files is None else user_files
    record = Record(config, folder, environment or current_environment(), user_files, earlier)
    try:
        refuse_changes(changed_files(user_files, fingerprint(config)))
        trainer = open_trainer(config, folder, launcher)
        # A folder that can't be written is found before anything is measured.
        record.write("unfinished")
        whole_trainings = WholeTrainings(config)
        baseline = BASELINE if config.measurement.baseline == "paired" else None
        budget = Budget(config, baseline, CANDIDATE, whole_trainings)
        configs = _choose_configs(config, trainer, record.result.blocks, on_progress)
        # Under torchrun, other hosts run only one training at a time, so no further arm can take turns.
        may_share = launcher.hosts is None and config.measurement.shared_memory != "never"
        shared_memory_config = config.with_shared_memory() if may_share else None
        for block in _measure_blocks(trainer, configs, shared_memory_config, budget, record, on_progress):
            refuse_changes(changed_files(user_files, fingerprint(config)))
            record.add_block(block, digests_of(trainer.files))
        # For a resumed job that already has all its blocks.
        whole_trainings.reserve_seconds(arm_steps(record.result.blocks[-1]))
        for number, name, trained in whole_trainings.configs():
            if len(record.result.trainings.get(name, [])) > number:
                continue  # made before an interruption
            on_progress(f"training as {name}, seed {trained.seed}", budget.done_fraction)
            assert isinstance(trainer, BuiltInTrainer)
            is_kept = trained.checkpoint and name == CANDIDATE and number == 0
            training = trainer.train(trained, folder / CHECKPOINT if is_kept else None)
            record.add_training(name, training)
    except (ConfigError, DataError) as error:
        if record_bad_input and not record.would_replace_result:  # a failure doesn't overwrite an earlier result
            record.write("failed", error)
        raise
    except (WorkerError, DivergedError) as error:
        record.write("diverged" if isinstance(error, DivergedError) else "failed", error)
        raise
    record.write("ok")
    return record.result


def measure_in_turns(
    configs: Mapping[str, JobConfig],
    baseline: str,
    candidate: str,
    folder: Path,
    launcher: LocalLauncher | None = None,
    on_progress: OnProgress = lambda text, done: None,
) -> list[Block]:
    """Measure these trainings in turns, with the baseline's data and settings; return the blocks.

    The names are those of the arms; the precision is that of the candidate's speedup over the baseline. `folder`
    receives the output of scripts. Raises ConfigError, DataError, WorkerError, DivergedError.
    """
    before = [fingerprint(config) for config in configs.values()]
    trainer = open_trainer(configs[baseline], folder, launcher or LocalLauncher())
    budget = Budget(configs[baseline], baseline, candidate)
    blocks = list(run_blocks(trainer, lambda blocks: configs, budget, on_progress=on_progress))
    for config, files in zip(configs.values(), before, strict=True):
        refuse_changes(changed_files(files, fingerprint(config)))
    return blocks


def _measure_blocks(
    trainer: Trainer,
    configs: dict[str, JobConfig],
    shared_memory_config: JobConfig | None,
    budget: Budget,
    record: Record,
    on_progress: OnProgress,
) -> Iterator[Block]:
    """Yield the blocks of a job; the caller adds them to its record.

    If exchanging gradients is the bottleneck, `shared_memory_config` is an arm of all further blocks. If that arm
    fails, it is left out, unless the job asked for it.
    """
    is_requested = budget.measurement.shared_memory == "always"
    has_failed = False

    def choose_arms(blocks: Sequence[Block]) -> Mapping[str, JobConfig]:
        if shared_memory_config is None or has_failed:
            return configs
        shares_memory = is_requested or any(
            SHARED_MEMORY in block.arms or _may_share_memory(shared_memory_config, block) for block in blocks
        )
        return configs | ({SHARED_MEMORY: shared_memory_config} if shares_memory else {})

    while True:
        finished = time.perf_counter()
        try:
            for block in run_blocks(trainer, choose_arms, budget, record.result.blocks, on_progress):
                yield block
                finished = time.perf_counter()
            return
        except WorkerError as error:
            was_tried = SHARED_MEMORY in choose_arms(record.result.blocks)
            if is_requested or not was_tried or "shared memory" not in str(error):  # the arm that has failed
                raise
            has_failed = True
            budget.exclude_seconds(time.perf_counter() - finished)  # the failed block, perhaps a hang of minutes
            _log.warning("gradients in shared memory could not be measured: %s", error)


def _may_share_memory(config: JobConfig, block: Block) -> bool:
    """Whether DistributedDataParallel spends much of a step exchanging gradients, and more than waiting."""
    arm = block.arms[CANDIDATE]
    seconds = {name: float(np.sum(values)) for name, values in arm.phases.items()}
    limit = max(MIN_EXCHANGE_SHARE * sum(seconds.values()), seconds.get("wait", 0.0))
    if (arm.memory_bytes or 0) > available_memory_bytes():  # not enough for as many processes again
        return False
    exchanges_long = seconds.get("communicate", 0.0) > limit
    return exchanges_long and (isinstance(config, BuiltInConfig) or all(process.by_ddp for process in arm.processes))


def _choose_configs(
    config: JobConfig, trainer: Trainer, earlier: list[Block], on_progress: OnProgress
) -> dict[str, JobConfig]:
    """Return the arms of each block, by name."""
    configs = {CANDIDATE: config}
    if config.measurement.baseline == "paired":
        configs[BASELINE] = config.baseline()
    if config.measurement.best_sequential:
        if earlier:
            best = earlier[0].arms.get(BEST_SEQUENTIAL)
            threads = config.threads_per_worker if best is None else best.threads
        else:
            threads = probe_best_threads(config, trainer, on_progress)
        if BASELINE not in configs or threads != config.threads_per_worker:
            configs[BEST_SEQUENTIAL] = config.baseline(threads)
    return configs


_best_threads: dict[str, int] = {}  # by the relevant settings, from earlier jobs of this process


def probe_best_threads(config: JobConfig, trainer: Trainer, on_progress: OnProgress) -> int:
    """Find the number of threads with which one process is likely fastest, by letting all numbers take turns.

    The numbers are powers of two, all cores, and `threads_per_worker`. If there are only two, and a baseline, both are
    measured in each block. The answer is cached for jobs with the same sequential process, however long it trains.
    """
    cores = usable_cores()
    counts = sorted({2**power for power in range(cores.bit_length())} | {cores, config.threads_per_worker})
    if len(counts) == 1 or (len(counts) == 2 and config.measurement.baseline == "paired"):
        return next((threads for threads in counts if threads != config.threads_per_worker), counts[0])
    settings = config.baseline().identity
    for name in ("threads_per_worker", "epochs", "seed", "target_accuracy"):
        settings.pop(name, None)
    del settings["data"]["size"]
    key = json.dumps([settings, fingerprint(config)])
    if key not in _best_threads:
        on_progress("looking for the best number of threads", 0.0)
        configs = {f"one process with {pluralize(threads, 'thread')}": config.baseline(threads) for threads in counts}
        with trainer.running(configs) as running:
            rounds = Rounds(trainer.pace(configs), list(configs), seed=0)
            rounds.warm_up(running, config.measurement.warmup_steps)
            rounds.run_until(running, lambda seconds: seconds > PROBE_SECONDS)
            arms = running.end(rounds.timed)
        best = min(arms.values(), key=lambda arm: float(arm.all_step_seconds.mean()))
        _best_threads[key] = best.threads
    return _best_threads[key]
