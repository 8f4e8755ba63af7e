"""In the processes of a measured script: the steps of an optimizer are its clock, and where it takes turns.

It is the first optimizer, and when that steps no more, the one that does then: a script may make a new one for each
part of its work. A step ends when `optimizer.step` has returned. At steps that dpexp names, the process reports the
times of its steps through a socket, and waits for its next turn. In turns that are traced, further hooks tell where a
step's time goes. Needs no other module of dpexp: the script may run in another environment, and in an older Python.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import socket
import sys
import time
from multiprocessing.connection import Connection
from typing import Any

ADDRESS = "DPEXP_SCRIPT_SOCKET"
RANKS = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")
COLLECTIVES = (
    "all_gather all_gather_into_tensor all_gather_single all_gather_object all_reduce all_to_all all_to_all_single "
    "barrier broadcast reduce reduce_scatter reduce_scatter_single reduce_scatter_tensor"
).split()
MOST_OTHER_STEPS = 20  # of other optimizers after a step of the clock's; beyond, it has retired
WORLD_SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS")


class Clock:
    """Times the steps of one process."""

    def __init__(self) -> None:
        self._optimizer: Any = None
        self._connection: Connection | None = None
        self._trace: Trace | None = None
        self._other_steps = 0  # since the last one of the clock's optimizer
        self._steps = 0  # before the last pause
        self._times: list[float] = []  # of the end of each step since the last pause, the first when that was over
        self._synchronized = self._until = 1  # numbers of steps since then: the device is idle, and the next pause

    def after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """Called after each step of any optimizer."""
        if optimizer is not self._optimizer:
            if self._optimizer is not None:
                self._other_steps += 1
                if self._other_steps > MOST_OTHER_STEPS:
                    self._follow(optimizer)
                return
            self._optimizer, self._times = optimizer, [0.0]
        self._other_steps = 0
        number = len(self._times)
        if number in (self._synchronized, self._until):
            _synchronize()
        now = time.perf_counter()
        self._times.append(now)
        if self._trace is not None:
            self._trace.end_step(now)
        if number == self._until:
            self._pause()

    def _follow(self, optimizer: Any) -> None:
        """From now on this optimizer's steps are the clock; what went on since the last one's belongs to no step."""
        self._optimizer, self._other_steps = optimizer, 0
        now = time.perf_counter()
        self._times = [one + now - self._times[-1] for one in self._times]
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
                self._connection.send(_introduction())
                atexit.register(self._say_goodbye)
            else:
                self._connection.send((self._times, traced))
            message = self._connection.recv()
            if message == "fingerprint":
                self._connection.send(_fingerprint(self._optimizer))
                message = self._connection.recv()
            self._synchronized, self._until, trace = message
        except (OSError, EOFError):
            os._exit(1)  # dpexp has ended, and so has this measurement
        if trace:
            self._trace = Trace(self._optimizer)
        self._steps += len(self._times) - 1
        self._times = [time.perf_counter()]

    def _say_goodbye(self) -> None:
        """At the end of the process: its number of steps, unless an exception has ended it."""
        failed = hasattr(sys, "last_type")
        with contextlib.suppress(OSError, EOFError):
            if self._connection is not None and not failed:
                self._connection.send(self._steps + len(self._times) - 1)

    def forget(self) -> None:
        """In a forked process: if its parent trains, it is a helper, such as a worker of a data loader."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
            self._until = self._synchronized = 0  # never again


class Trace:
    """Where the time of each step goes.

    Until the first call of any module it waits for data; until all gradients are there it computes; from there to the
    return of `backward` it synchronizes (as DistributedDataParallel does), and so it does within calls of
    `torch.distributed`'s collectives, wherever they are; the rest, up to the end of the step, is its update. With
    gradient accumulation, all that happens several times in a step.
    """

    def __init__(self, optimizer: Any, steps: list[Any] | None = None) -> None:
        """`steps` are those that were traced before with another optimizer."""
        import torch

        self._torch: Any = torch
        self._steps = steps or []
        self._arming: Any = None
        self._backward: Any = torch.autograd.backward
        self._torch.autograd.backward = self._traced_backward
        self._collectives: dict[str, Any] = {}
        if torch.distributed.is_available():
            known = [name for name in COLLECTIVES if hasattr(torch.distributed, name)]
            self._collectives = {name: getattr(torch.distributed, name) for name in known}
        for name, function in self._collectives.items():
            setattr(torch.distributed, name, functools.partial(self._traced_collective, function))
        parameters = [one for group in optimizer.param_groups for one in group["params"] if one.requires_grad]
        self._handles = [one.register_post_accumulate_grad_hook(self._on_gradient) for one in parameters]
        self._last = time.perf_counter()
        self._begin_step()

    def _begin_step(self) -> None:
        self._data = self._compute = self._update = 0.0
        self._gradient: float | None = None  # when the last one of a `backward` was there
        self._meetings: list[tuple[float, float]] = []  # with other processes: the arrival, and the seconds from there
        self._arm()

    def _arm(self) -> None:
        if self._arming is None:
            module = self._torch.nn.modules.module
            self._arming = module.register_module_forward_pre_hook(self._on_forward)

    def _on_forward(self, module: Any, args: Any) -> None:
        """The first call of a module after a step, or after `backward`."""
        self._arming.remove()
        self._arming = None
        now = time.perf_counter()
        self._data += now - self._last
        self._last = now

    def _on_gradient(self, parameter: Any) -> None:
        self._gradient = time.perf_counter()

    def _traced_backward(self, *args: Any, **kwargs: Any) -> None:
        if self._arming is not None:
            self._arming.remove()  # nothing called a module
            self._arming = None
        self._gradient = None
        self._backward(*args, **kwargs)
        now = time.perf_counter()
        ready = now if self._gradient is None else self._gradient
        self._meetings.append((ready, now - ready))
        self._compute += ready - self._last
        self._last = now
        self._arm()

    def _traced_collective(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        result = function(*args, **kwargs)
        seconds = time.perf_counter() - began
        self._meetings.append((began, seconds))
        self._last += seconds  # no part of what is going on
        return result

    def end_step(self, now: float) -> None:
        """The step has ended."""
        self._update += now - self._last
        self._last = now
        self._steps.append((self._data, self._compute, self._update, self._meetings))
        self._begin_step()

    def end(self) -> list[Any]:
        """Remove all hooks; return for each step the seconds of data, compute and update, and its meetings."""
        torch = self._torch
        torch.autograd.backward = self._backward
        for name, function in self._collectives.items():
            setattr(torch.distributed, name, function)
        for handle in [*self._handles, self._arming]:
            if handle is not None:
                handle.remove()
        return self._steps


def _synchronize() -> None:
    """Wait until the devices have finished; untested, for want of one."""
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _connect() -> Connection:
    end = socket.socket(socket.AF_UNIX)
    end.connect("\0" + os.environ[ADDRESS])
    return Connection(end.detach())


def _introduction() -> dict[str, Any]:
    import torch

    rank, world_size = _from_environment(RANKS), _from_environment(WORLD_SIZES)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    return {
        "world": os.environ["DPEXP_SCRIPT_WORLD"],
        "rank": rank or 0,
        "world_size": world_size or 1,
        "threads": torch.get_num_threads(),
    }


def _from_environment(names: tuple[str, ...]) -> int | None:
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdigit()), None)


def _fingerprint(optimizer: Any) -> str:
    """The SHA-256 of the parameters, as this process holds them."""
    import hashlib

    import torch

    digest = hashlib.sha256()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
            digest.update(local.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def install(optimizers: Any) -> None:
    """Once `torch.optim.optimizer` is imported."""
    if ADDRESS in os.environ:
        clock = Clock()
        optimizers.register_optimizer_step_post_hook(clock.after_step)
        os.register_at_fork(after_in_child=clock.forget)
