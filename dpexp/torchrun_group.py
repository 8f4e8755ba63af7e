"""Under torchrun each of its processes starts one worker, and all tell each other what they learn."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from typing import Any, TypeVar

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from dpexp import launch, worker
from dpexp.conditions import Watch
from dpexp.config import ExperimentConfig
from dpexp.errors import ConfigError, DpexpError, PeerError, WorkerError, one_line
from dpexp.groups import Group
from dpexp.strategies import Ddp, strategy_class
from dpexp.strategies.ddp import Rendezvous
from dpexp.torchrun import World

POLL_SECONDS = 0.2
CLOSE_SECONDS = 10.0
BEAT_SECONDS, SILENCE_SECONDS = 1.0, 20.0

T = TypeVar("T")


class TorchrunGroup(Group):
    """Under torchrun: each of its processes starts one worker, and all exchange what they learn through a store.

    Every process goes through the same sequence of calls, so that a counter is enough to name the keys.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self.writes = world.rank == 0
        try:
            server = TCPStore(
                world.master_address, world.master_port, is_master=world.serves_store, wait_for_workers=False
            )
        except RuntimeError as error:
            where = f"MASTER_ADDR={world.master_address} MASTER_PORT={world.master_port}"
            raise ConfigError(f"{where}: no other rank can be met there ({one_line(error)})") from error
        self._store = PrefixStore(f"dpexp/{world.attempt}", server)
        self._calls = 0
        threading.Thread(target=self._beat, daemon=True).start()

    def run(self, work: worker.Work, on_epoch: Callable[[int], None]) -> list[worker.WorkerReport]:
        """One training; the sequential baseline runs in rank 0's place alone. See Group."""
        outcome: dict[str, Any] = {"reports": []}
        self._calls += 1
        try:
            if strategy_class(work.config) is Ddp:
                outcome["reports"] = self._run_own(work, on_epoch)
            elif self._world.rank == 0:
                outcome["reports"] = super().run(work, on_epoch)
        except Exception as error:  # whatever it is, the other ranks must hear of it
            known = (
                error if isinstance(error, WorkerError) else WorkerError(f"rank {self._world.rank}: {one_line(error)}")
            )
            self._tell_failure(known)
            outcome["error"] = str(known)
        outcome["reports"] = [dataclasses.asdict(report) for report in outcome["reports"]]
        outcomes = self._exchange(outcome)
        if any("error" in one for one in outcomes):
            raise WorkerError(**json.loads(self._store.get(f"{self._calls}/failure")))
        return [worker.WorkerReport(**report) for one in outcomes for report in one["reports"]]

    @contextlib.contextmanager
    def together(self, config: ExperimentConfig) -> Iterator[None]:
        """See Group. Raises ConfigError, too, when ranks were given different configurations."""
        outcome: dict[str, Any] = {"config": dataclasses.asdict(config), "error": None}
        try:
            yield
        except Exception as error:  # whatever it is, the other ranks must hear of it
            outcome["error"] = str(error) if isinstance(error, DpexpError) else one_line(error)
            self._calls += 1
            self._exchange(outcome)
            raise
        self._calls += 1
        outcomes = self._exchange(outcome)
        for rank, other in enumerate(outcomes):
            if other["error"] is not None:
                raise ConfigError(f"rank {rank}: {other['error']}")
            if other["config"] != outcomes[0]["config"]:
                raise ConfigError(f"rank {rank} and rank 0 compose different configurations: start all with the same")

    def of_first(self, value: T) -> T:
        """See Group; `value` must be what JSON keeps."""
        self._calls += 1
        first: T = self._exchange(value)[0]
        return first

    def watch(self) -> Watch:
        """See Group. Rank 0's alone is recorded, so the others keep still."""
        watch = Watch(probe=self._world.rank == 0)
        self.of_first(None)
        return watch

    def runs_here(self, rank: int) -> bool:
        """See Group; torchrun gives the ranks of one machine consecutive numbers."""
        return rank // self._world.local_world_size == self._world.rank // self._world.local_world_size

    def close(self) -> None:
        """See Group. The others wait for rank 0, which writes; who serves the store waits for the others."""
        with contextlib.suppress(RuntimeError):  # the store is gone: so is its server
            if self._world.rank > 0:
                self._wait_for(["over/0"])  # in vain where rank 0 has died: it says so
            self._store.set(f"over/{self._world.rank}", "")
            if self._world.serves_store:
                self._wait_for([f"over/{rank}" for rank in range(self._world.world_size)], CLOSE_SECONDS)

    def _run_own(self, work: worker.Work, on_epoch: Callable[[int], None]) -> list[worker.WorkerReport]:
        """This rank's worker alone; ended when another rank's fails."""
        world = self._world
        shared = Rendezvous(world.master_address, world.master_port, f"dpexp/{world.attempt}/{self._calls}/group")
        with self._elsewhere() as elsewhere:
            return launch.launch(
                worker.run,
                [(work, shared, time.monotonic())],
                on_epoch,
                work.config.launch.timeout_seconds,
                elsewhere,
            )

    @contextlib.contextmanager
    def _elsewhere(self) -> Iterator[launch.Elsewhere]:
        """What becomes of the other ranks in this call; a thread asks, since an answer may be long in coming."""
        receiver, sender = Pipe(duplex=False)
        over = threading.Event()
        key = f"{self._calls}/failure"
        own, heard = None, 0  # where this rank is, and how often any rank has been seen to get on

        def tell_progress(state: Any) -> int:
            nonlocal own
            own = state
            return heard

        def watch() -> None:
            nonlocal heard
            told = None
            while not over.wait(POLL_SECONDS):
                if self._store.check([key]):
                    sender.send(json.loads(self._store.get(key))["message"])
                    return
                told, changed = own, own != told
                heard = self._store.add("progress", int(changed))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield launch.Elsewhere(self._world.rank, receiver, tell_progress)
        finally:
            over.set()
            watcher.join()
            sender.close()
            receiver.close()

    def _tell_failure(self, error: WorkerError) -> None:
        """Let all ranks know the first cause. Who only lost a peer waits for that peer's word."""
        key = f"{self._calls}/failure"
        if isinstance(error, PeerError):
            self._wait_for([key], 2 * launch.CAUSE_SECONDS)
        # Whoever comes first: the empty value stands for a key that isn't there.
        self._store.compare_set(key, "", json.dumps({"message": str(error), "details": error.details}))

    def _exchange(self, value: Any) -> list[Any]:
        """What every rank passes in this call, by rank."""
        self._store.set(f"{self._calls}/{self._world.rank}", json.dumps(value))
        values = []
        for rank in range(self._world.world_size):
            self._wait_for([f"{self._calls}/{rank}"])
            values.append(json.loads(self._store.get(f"{self._calls}/{rank}")))
        return values

    def _beat(self) -> None:
        """Show that this process lives, as long as it does."""
        with contextlib.suppress(RuntimeError):  # the store is gone: so is its server
            for beat in itertools.count():
                self._store.set(f"alive/{self._world.rank}", str(beat))
                time.sleep(BEAT_SECONDS)

    def _wait_for(self, keys: list[str], seconds: float = math.inf) -> None:
        """Return when all keys are there, or the time is over. Raises PeerError when a process has died meanwhile.

        It polls: a wait inside torch would not hear a signal.
        """
        started = looked = time.monotonic()
        beats: dict[int, bytes] = {}
        while not self._store.check(keys) and time.monotonic() < started + seconds:
            time.sleep(POLL_SECONDS)
            if self._world.rank > 0 and self._store.check(["over/0"]) and not self._store.check(keys):
                raise PeerError("rank 0 has ended before the others: its output says why")
            if time.monotonic() > looked + SILENCE_SECONDS:
                looked = time.monotonic()
                for rank in range(self._world.world_size):
                    beat = self._store.get(f"alive/{rank}") if self._store.check([f"alive/{rank}"]) else b"none"
                    if beats.get(rank) == beat and not self._store.check([f"over/{rank}"]):
                        raise PeerError(f"rank {rank} has not been heard of for {SILENCE_SECONDS:.0f} s")
                    beats[rank] = beat
