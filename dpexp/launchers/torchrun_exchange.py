"""What the processes that torchrun started tell each other, through torch's key-value store."""

from __future__ import annotations

import atexit
import itertools
import json
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from dpexp.errors import ConfigError, DpexpError, WorkerError, one_line
from dpexp.launchers.torchrun_environment import TorchrunEnvironment

POLL_SECONDS, SILENCE_SECONDS, CLOSE_SECONDS = 0.2, 20.0, 1.0
GONE = "rank 0 has ended before the other ranks; its output says why"


class Exchange:
    """Each rank publishes facts about itself, which JSON keeps. Rank 0 sees those of all ranks, the others rank 0's.

    A thread talks to the store: no signal interrupts torch's calls, and they wait forever for a machine that is lost.
    """

    def __init__(self, environment: TorchrunEnvironment, arguments: Sequence[str]) -> None:
        self.seen: dict[int, dict[str, Any]] = {}  # what the others have published, by rank; replaced, never changed
        self.lost: dict[int, str] = {}  # who will publish nothing more, and why
        self._environment = environment
        self._others = range(1, environment.world_size) if environment.rank == 0 else range(1)
        nothing: dict[str, Any] = {"task": {"number": 0}, "outcome": {"number": 0}, "answer": {"number": 0}}
        place = [environment.local_rank, environment.local_world_size]
        self._facts = {**nothing, "world_size": environment.world_size, "place": place, "arguments": list(arguments)}
        self._error: DpexpError | None = None  # has ended the thread
        self._asked = math.inf  # when the thread began to ask what it has no answer to yet
        self._wake, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        atexit.register(self.close, GONE)  # a thread that comes back from torch at the interpreter's end aborts it

    def publish(self, at_once: bool = True, **facts: Any) -> None:
        """Let the others see these facts, in place of earlier ones of the same names."""
        self._facts = self._facts | facts
        if at_once:
            self._wake.set()

    def wait_until(self, done: Callable[[], bool], seconds: float = math.inf) -> None:
        """Return when `done`, or after so many seconds. Raises what `check` does."""
        until = time.monotonic() + seconds
        while not done() and time.monotonic() < until:
            self.check()
            time.sleep(POLL_SECONDS / 2)

    def check(self) -> None:
        """Raise WorkerError when a rank is lost, ConfigError when the store can't be reached."""
        if self._error is not None:
            raise self._error
        if time.monotonic() > self._asked + SILENCE_SECONDS:
            raise WorkerError(f"the machine of rank 0 has not responded for {SILENCE_SECONDS:.0f} s")
        for why in self.lost.values():
            raise WorkerError(why)

    def wait_for_others(self, seconds: float) -> None:
        """Return when all whom this rank has seen are lost or have left, or after so many seconds."""
        until = time.monotonic() + seconds
        while self._thread.is_alive() and self.seen.keys() - self.lost.keys() and time.monotonic() < until:
            time.sleep(POLL_SECONDS / 2)

    def close(self, why: str) -> None:
        """Tell the others `why` they won't hear of this rank any more, and end the thread."""
        self.publish(left=why)
        self._closing.set()
        self._wake.set()
        self._thread.join(CLOSE_SECONDS)  # one that has lost the store's machine doesn't come back
        atexit.unregister(self.close)

    def _run(self) -> None:
        try:
            store = self._connect()
            silent = dict.fromkeys(self._others, -SILENCE_SECONDS)  # they may start later
            waited = 0.0
            for number in itertools.count():
                is_last = self._closing.is_set()
                self._asked = time.monotonic()
                changed = self._look(store, number)
                self._asked = math.inf
                if is_last:
                    return
                for rank in self._others:
                    silent[rank] = 0.0 if rank in changed else silent[rank] + waited
                    if "left" in self.seen.get(rank, {}):
                        self.lost.setdefault(rank, self.seen[rank]["left"])
                    elif silent[rank] > SILENCE_SECONDS:
                        self.lost.setdefault(rank, f"rank {rank} has not responded for {SILENCE_SECONDS:.0f} s")
                waited = 0.0 if self._wake.wait(POLL_SECONDS) else POLL_SECONDS
                self._wake.clear()
        except DpexpError as error:
            self._error = error
        except RuntimeError:  # torch's, when the store is gone
            self._error = WorkerError(GONE)

    def _connect(self) -> PrefixStore:
        """To the store of rank 0 or torchrun. Raises ConfigError."""
        address, port = self._environment.master_address, self._environment.master_port
        try:
            store = TCPStore(address, port, is_master=self._environment.serves_store, wait_for_workers=False)
        except RuntimeError as error:
            raise ConfigError(
                f"MASTER_ADDR={address} MASTER_PORT={port}: no other rank can be reached there ({one_line(error)})"
            ) from error
        return PrefixStore(f"dpexp/{self._environment.attempt}", store)

    def _look(self, store: PrefixStore, number: int) -> list[int]:
        """Publish, and see what the others have published; the ranks that have done so since the last time."""
        store.set(str(self._environment.rank), json.dumps({**self._facts, "round": number}))
        there = [rank for rank in self._others if rank in self.seen or store.check([str(rank)])]
        seen = dict(zip(there, map(json.loads, store.multi_get([str(rank) for rank in there])), strict=True))
        changed = [rank for rank in there if seen[rank] != self.seen.get(rank)]
        self.seen = seen
        return changed
