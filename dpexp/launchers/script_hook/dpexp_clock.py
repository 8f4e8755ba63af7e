"""Runs in the processes of a measured script: an optimizer's steps serve as its clock, and it pauses between them.

The clock follows the first optimizer, and switches to another when the first stops stepping: a script may make a new
one for each part of its work. A step ends when `optimizer.step` has returned. At steps that dpexp names, the process
reports the times of its steps through a socket, and waits for its next turn. In turns that are traced, further hooks
tell where a step's time goes. Needs no other module of dpexp: the script may run in another environment, and in an
older Python.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import sys
import time
from multiprocessing import connection
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from dpexp_trace import Samples, Trace  # type: ignore[import-not-found] # beside this file

ADDRESS = "DPEXP_SCRIPT_SOCKET"
MAX_OTHER_STEPS = 20  # after this many steps of other optimizers, follow another one


class StepClock:
    """Times the steps of one process."""

    def __init__(self, read_files: Any = set) -> None:
        """`read_files` returns the settings files that this process has read."""
        self._read_files = read_files
        self._optimizer: Any = None
        self._outer: Any = None  # the optimizer whose step is running; others may step within it
        self._connection: Connection | None = None
        self._trace: Trace | None = None
        self._samples: Any = None  # until the first steps are over
        self._other_steps = 0  # since the last one of the clock's optimizer
        self._steps = 0  # before the last pause
        self._times: list[float] = []  # when the last pause was over, and when each step since then ended
        self._synchronize_at = self._pause_at = 1  # steps since then at which to wait for the device, and to pause

    def before_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """Called before each step of any optimizer."""
        if self._outer is None:
            self._outer = optimizer

    def after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """Called after each step of any optimizer.

        A step within another one's is part of it (ZeroRedundancyOptimizer).
        """
        if optimizer is not self._outer:
            return
        self._outer = None
        if optimizer is not self._optimizer:
            if self._optimizer is not None:
                self._other_steps += 1
                if self._other_steps > MAX_OTHER_STEPS:
                    self._follow(optimizer)
                return
            self._optimizer, self._times = optimizer, [0.0]
        self._other_steps = 0
        number = len(self._times)
        if number in (self._synchronize_at, self._pause_at):
            _synchronize()
        now = time.perf_counter()
        self._times.append(now)
        if self._samples is not None and self._steps + number > 1:
            self._samples.end()
        if self._trace is not None:
            self._trace.end_step(now)
        if number == self._pause_at:
            self._pause()

    def _follow(self, optimizer: Any) -> None:
        """Time this optimizer's steps from now on; the time since the old one's last step counts for no step."""
        self._optimizer, self._other_steps = optimizer, 0
        now = time.perf_counter()
        self._times = [ended + now - self._times[-1] for ended in self._times]
        if self._trace is not None:
            steps = self._trace.end()
            self._trace = Trace(optimizer, steps)

    def _pause(self) -> None:
        """Report the steps since the last pause; return when this process may go on."""
        traced = None if self._trace is None else self._trace.end()
        self._trace = None
        try:
            if self._connection is None:
                self._connection = _connect()
                self._connection.send(_introduction(self._read_files()))
                atexit.register(self._report_end)
                self._samples = Samples()
            else:
                self._connection.send((self._times, traced))
            message = self._connection.recv()
            while message == "time":
                self._connection.send(time.perf_counter())
                message = self._connection.recv()
            if message == "final report":
                shares_memory = bool(getattr(sys.modules.get("dpexp.exchange.peers"), "open_peers", False))
                seen = self._samples.seen
                seen["by_ddp"] &= not shares_memory
                self._connection.send(({"host": socket.gethostname(), **seen}, shares_memory))
                message = self._connection.recv()
            self._synchronize_at, self._pause_at, trace = message
        except (OSError, EOFError) as error:
            if self._connection is None:
                where = ":".join(os.environ[ADDRESS].split()[:2])
                sys.stderr.write(f"OSError: dpexp can't be reached at {where}: {error}\n")
                sys.stderr.flush()
            os._exit(1)  # dpexp has ended, and so has this measurement
        if trace:
            self._trace = Trace(self._optimizer)
        self._steps += len(self._times) - 1
        self._times = [time.perf_counter()]

    def _report_end(self) -> None:
        """Report the number of steps at the end of the process, unless an exception has ended it."""
        failed = hasattr(sys, "last_type")
        with contextlib.suppress(OSError, EOFError):
            if self._connection is not None and not failed:
                self._connection.send(self._steps + len(self._times) - 1)

    def close_after_fork(self) -> None:
        """Stop the clock in a forked process: it is a helper, such as a worker of a data loader."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
            self._pause_at = self._synchronize_at = 0  # never again


def _synchronize() -> None:
    """Wait until the devices have finished (untested without a GPU)."""
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _connect() -> Connection:
    """Connect to dpexp; from another machine, the address has a host, a port and a key."""
    address = os.environ[ADDRESS].split()
    if len(address) > 1:
        host, port, key = address
        opened = socket.create_connection((host, int(port)))
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        remote = Connection(opened.detach())
        connection.answer_challenge(remote, key.encode())
        connection.deliver_challenge(remote, key.encode())
        return remote
    opened = socket.socket(socket.AF_UNIX)
    opened.connect("\0" + address[0])
    return Connection(opened.detach())


def _introduction(read: Any) -> dict[str, Any]:
    import torch

    rank, world_size = 0, 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    return {
        "mark": os.environ["DPEXP_SCRIPT_MARK"],
        "rank": rank,
        "world_size": world_size,
        "threads": torch.get_num_threads(),
        "files": _own_files(read),
    }


def _own_files(read: Any) -> list[str]:
    """Return the imported modules and read files that belong to no library."""
    libraries, here = Path(os.__file__).resolve().parent, Path(__file__).resolve().parent
    files = {getattr(module, "__file__", None) for module in list(sys.modules.values())} | set(read)
    paths = {Path(path).resolve() for path in files if isinstance(path, str)}
    return sorted(
        str(path)
        for path in paths
        if path.is_file()
        and here not in path.parents
        and not any(parent == libraries or parent.name.endswith("-packages") for parent in path.parents)
    )


def install(optimizers: Any, read_files: Any) -> None:
    """Install the clock; called when `torch.optim.optimizer` has been imported."""
    if ADDRESS in os.environ:
        clock = StepClock(read_files)
        optimizers.register_optimizer_step_pre_hook(clock.before_step)
        optimizers.register_optimizer_step_post_hook(clock.after_step)
        os.register_at_fork(after_in_child=clock.close_after_fork)
