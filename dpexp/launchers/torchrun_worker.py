"""Under torchrun, any rank: the one worker of this rank's place in a training."""

from __future__ import annotations

import time
from multiprocessing.connection import Connection

from dpexp.launchers.torchrun_store import Store
from dpexp.processes.world import RemoteRanks, WorldSpec
from dpexp.strategies import strategy_class
from dpexp.strategies.rendezvous import Rendezvous
from dpexp.training import worker
from dpexp.training.worker import Work


def one_rank(work: Work, store: Store, task: int, gate: Connection | None, remote: RemoteRanks) -> WorldSpec:
    """What this rank starts; its worker is ended when another rank's fails."""
    environment = store.environment
    prefix = f"dpexp/{environment.attempt}/world/{task}"
    rendezvous = Rendezvous(environment.master_address, environment.master_port, prefix)
    kind = strategy_class(work.config)
    shared = kind.under_torchrun(rendezvous, environment.local_rank, environment.local_world_size)
    return WorldSpec(worker.run, [(work, shared, time.monotonic(), gate)], remote=remote)
