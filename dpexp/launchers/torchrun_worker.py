"""Under torchrun, any rank: launch the one worker of this rank's place in a training."""

from __future__ import annotations

import time
from collections.abc import Callable

from dpexp.launchers.local import start_errors
from dpexp.launchers.torchrun_store import Store
from dpexp.processes.launch import launch
from dpexp.strategies.ddp import Rendezvous
from dpexp.training import worker
from dpexp.training.worker import Work, WorkerReport


def run_one_rank(work: Work, store: Store, task: int, on_epoch: Callable[[int], None]) -> list[WorkerReport]:
    """The report of this rank's worker, which is ended when another rank's fails. Raises WorkerError."""
    environment = store.environment
    prefix = f"dpexp/{environment.attempt}/world/{task}"
    rendezvous = Rendezvous(environment.master_address, environment.master_port, prefix)
    arguments = [(work, rendezvous, time.monotonic())]
    with start_errors(work), store.remote_ranks(task) as remote:
        return launch(worker.run, arguments, on_epoch, work.config.launch.timeout_seconds, remote)
