"""What the processes that torchrun started tell each other, through torch's key-value store."""

import math
import pickle
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from dpexp.errors import ConfigError, DpexpError, WorkerError, one_line
from dpexp.launchers.torchrun_environment import TorchrunEnvironment

POLL_SECONDS, SILENCE_SECONDS, CLOSE_SECONDS = 0.2, 20.0, 1.0


class Channel:
    """Each rank publishes facts about itself. Rank 0 sees those of all ranks, the others rank 0's.

    A thread talks to the store: no signal interrupts torch's calls, and they wait forever for a machine that is lost.
    Collectives can't replace it: they don't say which rank is silent, nor anything while a rank carries out a task.
    """

    def __init__(self, environment: TorchrunEnvironment, arguments: Sequence[str], **facts: Any) -> None:
        self.seen: dict[int, dict[str, Any]] = {}  # what the others have published, by rank; replaced, never changed
        self.facts = {"started": f"WORLD_SIZE={environment.world_size} and {' '.join(arguments)!r}", **facts}
        self._environment = environment
        self._others = range(1, environment.world_size) if environment.rank == 0 else range(1)
        self._error: DpexpError | None = None  # the error that ended the thread
        self._waited, self._last_wait = 0.0, time.monotonic()  # seconds in which this rank waited for others
        # The value of `_waited` when each was last heard; more at the beginning, since the others may start later.
        self._heard = dict.fromkeys(self._others, SILENCE_SECONDS)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def publish(self, **facts: Any) -> None:
        """Let the others see these facts, which replace earlier ones of the same names."""
        self.facts = self.facts | facts

    def wait_until(self, done: Callable[[], Any], seconds: float = math.inf) -> None:
        """Return when `done()` is true, or after `seconds`. Raises what `check` raises."""
        until = time.monotonic() + seconds
        while not done() and time.monotonic() < until:
            self.check()
            time.sleep(POLL_SECONDS / 2)

    def check(self) -> None:
        """Raise WorkerError if a rank is lost, ConfigError if the store can't be reached."""
        if self._error is not None:
            raise self._error
        for why in self.lost().values():
            raise WorkerError(why)

    def lost(self) -> dict[int, str]:
        """Return the lost ranks, each with the reason."""
        now = time.monotonic()
        self._waited += min(now - self._last_wait, 1.0)  # others may have spoken while this process was stopped
        self._last_wait = now
        silent = [rank for rank in self._others if self._waited > self._heard[rank] + SILENCE_SECONDS]
        why = {rank: f"rank {rank} has not responded for {SILENCE_SECONDS:.0f} s" for rank in silent}
        return why | {rank: facts["left"] for rank, facts in self.seen.items() if "left" in facts}

    def close(self, **facts: Any) -> None:
        """Publish the last facts, and end the thread, which might abort the interpreter at exit."""
        self.publish(**facts)
        self._closing.set()
        self._thread.join(CLOSE_SECONDS)  # one that has lost the store's machine doesn't come back

    def all_joined(self) -> bool:
        """Whether all others are there. Raises ConfigError if a rank has a different world size or arguments."""
        for rank, facts in self.seen.items():
            if facts["started"] != self.facts["started"]:
                both = sorted([(rank, facts["started"]), (self._environment.rank, self.facts["started"])], reverse=True)
                text = ", ".join(f"rank {place} was started with {start}" for place, start in both)
                raise ConfigError(
                    f"{text}; start all ranks with the same arguments (torchrun: also the same --nnodes and "
                    "--nproc-per-node on each host)"
                )
        return len(self.seen) == len(self._others)

    def _run(self) -> None:
        address, port = self._environment.master_address, self._environment.master_port
        why: DpexpError = ConfigError(f"MASTER_ADDR={address} MASTER_PORT={port}: no other rank can be reached there")
        try:
            server = TCPStore(address, port, is_master=self._environment.serves_store, wait_for_workers=False)
            why = WorkerError("rank 0 exited before the other ranks; see its output")
            store: Any = PrefixStore(self._environment.prefix, server)  # takes bytes, whatever its stub says
            for rank in self._others:
                store.compare_set(str(rank), "", "")  # create the key if it is missing, or `multi_get` waits
            while not self._closing.wait(POLL_SECONDS):
                self._exchange_facts(store)
            self._exchange_facts(store)
        except RuntimeError as error:  # torch's
            self._error = type(why)(f"{why} ({one_line(error)})")

    def _exchange_facts(self, store: Any) -> None:
        """Publish this rank's facts, and read those of the others."""
        store.set(str(self._environment.rank), pickle.dumps({**self.facts, "time": time.monotonic()}))
        published = zip(self._others, store.multi_get([str(rank) for rank in self._others]), strict=True)
        seen = {rank: pickle.loads(facts) for rank, facts in published if facts}  # noqa: S301 - a task may name any code
        self._heard |= {rank: self._waited for rank in seen if seen[rank] != self.seen.get(rank)}
        self.seen = seen
