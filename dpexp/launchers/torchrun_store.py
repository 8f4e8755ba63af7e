"""Messages between the processes that torchrun started, through torch's key-value store."""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from multiprocessing import Pipe
from typing import Any, TypeVar

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from dpexp.errors import ConfigError, PeerError, WorkerError, one_line
from dpexp.launchers.torchrun_environment import TorchrunEnvironment
from dpexp.processes.launch import CAUSE_SECONDS
from dpexp.processes.world import RemoteRanks

POLL_SECONDS = 0.2
BEAT_SECONDS, SILENCE_SECONDS = 1.0, 20.0
GONE = "rank 0 has ended before the other ranks; its output says why"


T = TypeVar("T")


class Store:
    """Keys and JSON values that all ranks see. A thread shows the other ranks that this process is alive."""

    def __init__(self, environment: TorchrunEnvironment) -> None:
        """Raises ConfigError where the store can't be reached."""
        self.environment = environment
        address, port = environment.master_address, environment.master_port
        try:
            server = TCPStore(address, port, is_master=environment.serves_store, wait_for_workers=False)
        except RuntimeError as error:
            raise ConfigError(
                f"MASTER_ADDR={address} MASTER_PORT={port}: no other rank can be reached there ({one_line(error)})"
            ) from error
        self._store = PrefixStore(f"dpexp/{environment.attempt}", server)
        self._exiting = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True)
        self._beating.start()
        atexit.register(self._end_beating)
        self.put(f"place/{environment.rank}", [environment.local_rank, environment.local_world_size])

    def put(self, key: str, value: Any) -> None:
        """Set a value that JSON keeps."""
        _answered(lambda: self._store.set(key, json.dumps(value)))

    def has(self, key: str) -> bool:
        """Whether a key is there."""
        return _answered(lambda: self._store.check([key]))

    def get(self, key: str) -> Any:
        """The value of a key, as soon as it is there. Raises PeerError when a process dies meanwhile."""
        self.wait_for([key])
        return json.loads(_answered(lambda: self._store.get(key)))

    def wait_for(self, keys: list[str], seconds: float = math.inf) -> None:
        """Return when all keys are there, or the time is over. Raises PeerError when a process has died meanwhile.

        It polls: a wait inside torch would not be interrupted by a signal.
        """
        started = checked = time.monotonic()
        beats: dict[int, bytes] = {}
        while not _answered(lambda: self._store.check(keys)) and time.monotonic() < started + seconds:
            time.sleep(POLL_SECONDS)
            if time.monotonic() > checked + SILENCE_SECONDS:
                checked = time.monotonic()
                self._check_alive(beats)

    def _check_alive(self, beats: dict[int, bytes]) -> None:
        """Raise PeerError when a rank has not changed its key since the last check, whose values are `beats`.

        Rank 0 checks all, the others check rank 0.
        """
        for rank in range(1, self.environment.world_size) if self.environment.rank == 0 else [0]:
            beat, ended = _answered(functools.partial(self._last_sign, rank))
            if beats.get(rank) == beat and not ended:
                raise PeerError(f"rank {rank} has not responded for {SILENCE_SECONDS:.0f} s")
            beats[rank] = beat

    def _poll(self, key: str, changed: int) -> tuple[bytes | None, int]:
        """The report of a failure below `key`, if there is one, and how often any rank's progress has changed."""
        failure = self._store.get(key) if self._store.check([key]) else None
        return failure, self._store.add("progress", changed)

    def _last_sign(self, rank: int) -> tuple[bytes, bool]:
        """The last beat of a rank, and whether it has ended."""
        beat = self._store.get(f"alive/{rank}") if self._store.check([f"alive/{rank}"]) else b"none"
        return beat, self._store.check([f"ended/{rank}"])

    def report_failure(self, task: int, error: WorkerError) -> None:
        """Let all ranks know the root cause of a task's failure. Who only lost a peer waits for that peer's report."""
        key = f"failure/{task}"
        if isinstance(error, PeerError):
            self.wait_for([key], 2 * CAUSE_SECONDS)
        # The first report wins: the empty value stands for a key that isn't there.
        report = json.dumps({"message": str(error), "details": error.details})
        _answered(lambda: self._store.compare_set(key, "", report))

    def failure(self, task: int) -> WorkerError:
        """The root cause of a task's failure."""
        return WorkerError(**self.get(f"failure/{task}"))

    @contextlib.contextmanager
    def remote_ranks(self, task: int) -> Iterator[RemoteRanks]:
        """For a launch of this rank's worker: how the other ranks are doing. A thread asks, since answers are slow."""
        receiver, sender = Pipe(duplex=False)
        over = threading.Event()
        key = f"failure/{task}"
        local_state, changes = None, 0  # this rank's heartbeats, and how often any rank's have changed

        def exchange_progress(state: Any) -> int:
            nonlocal local_state
            local_state = state
            return changes

        def watch() -> None:
            nonlocal changes
            published, checked = None, time.monotonic()
            beats: dict[int, bytes] = {}
            while not over.wait(POLL_SECONDS):
                published, changed = local_state, local_state != published
                failure, changes = _answered(functools.partial(self._poll, key, int(changed)))
                if failure is not None:
                    raise PeerError(json.loads(failure)["message"])
                if time.monotonic() > checked + SILENCE_SECONDS:
                    checked = time.monotonic()
                    self._check_alive(beats)

        def watch_and_tell() -> None:
            try:
                watch()
            except PeerError as error:
                sender.send(str(error))

        watcher = threading.Thread(target=watch_and_tell, daemon=True)
        watcher.start()
        try:
            yield RemoteRanks(self.environment.rank, receiver, exchange_progress)
        finally:
            over.set()
            watcher.join()
            sender.close()
            receiver.close()

    def _beat(self) -> None:
        """Show that this process is alive, as long as it is."""
        with contextlib.suppress(RuntimeError):  # the store is gone: so is its server
            for beat in itertools.count():
                self._store.set(f"alive/{self.environment.rank}", str(beat))
                if self._exiting.wait(BEAT_SECONDS):
                    return

    def _end_beating(self) -> None:
        """A thread that comes back from torch while the interpreter is being taken down would abort the process."""
        self._exiting.set()
        self._beating.join(BEAT_SECONDS)  # one that has lost the store's machine doesn't come back


def _answered(ask: Callable[[], T]) -> T:
    """What the store answers. Raises PeerError when it is gone, or its machine: torch would wait for that forever."""
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:  # which the caller gets
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return answer.result(SILENCE_SECONDS)
    except FutureTimeoutError:
        raise PeerError(f"the machine of rank 0 has not responded for {SILENCE_SECONDS:.0f} s") from None
    except RuntimeError as error:  # torch's, when the store is gone
        raise PeerError(GONE) from error
