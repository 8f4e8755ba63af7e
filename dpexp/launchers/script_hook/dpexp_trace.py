"""Runs in the processes of a measured script: what its models receive in a step, and where a step's time goes.

Like dpexp_clock, which uses it, it needs no other module of dpexp and no recent Python.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

COLLECTIVES = (
    "all_gather all_gather_into_tensor all_gather_single all_gather_object all_reduce all_to_all all_to_all_single "
    "barrier broadcast _broadcast_coalesced reduce reduce_scatter reduce_scatter_single reduce_scatter_tensor"
).split()

FUNCTIONAL = "all_gather_tensor all_reduce all_to_all_single broadcast reduce_scatter_tensor wait_tensor".split()
DDP = "DistributedDataParallel"
EXCHANGING = {DDP, "FullyShardedDataParallel", "FSDPModule"}


class Samples:
    """Counts the samples that models take in a step: the rows of the inputs in each call of a model in training.

    If there are several models, such as an encoder and a decoder, the one that takes the most samples counts.
    """

    def __init__(self) -> None:
        import torch

        self._thread, self._depth, self._open_model = threading.get_ident(), 0, 0
        self._samples: dict[int, int] = {}  # by the id of the model
        self._exchanges = self._by_ddp = False
        modules: Any = torch.nn.modules.module
        self._handles = [
            modules.register_module_forward_pre_hook(self._on_call),
            modules.register_module_forward_hook(self._on_return),
        ]

    def _on_call(self, module: Any, inputs: Any) -> None:
        if threading.get_ident() != self._thread or not (self._depth or (module.training and _trainable(module))):
            return
        if not self._depth:
            self._open_model = id(module)
        self._depth += 1
        kinds = EXCHANGING.intersection(kind.__name__ for kind in type(module).__mro__)
        self._exchanges |= bool(kinds)
        self._by_ddp |= DDP in kinds
        if self._open_model and inputs and getattr(inputs[0], "ndim", 0):  # else take the inputs of an inner module
            self._samples[self._open_model] = self._samples.get(self._open_model, 0) + inputs[0].shape[0]
            self._open_model = 0

    def _on_return(self, module: Any, inputs: Any, outputs: Any) -> None:
        if self._depth and threading.get_ident() == self._thread:
            self._depth -= 1

    @property
    def seen(self) -> dict[str, Any]:
        """The samples of a step, and whether a model is wrapped to exchange gradients."""
        samples = max(self._samples.values(), default=0)
        return {"samples": samples, "exchanges": self._exchanges, "by_ddp": self._by_ddp}

    def end(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


class Trace:
    """Traces where the time of each step goes.

    See docs/scripts.md for the phases. With gradient accumulation, all of them happen several times in a step. Other
    threads don't count.
    """

    def __init__(self, optimizer: Any, steps: list[Any] | None = None) -> None:
        """`steps` are steps that were traced before with another optimizer."""
        import torch

        self._torch: Any = torch
        self._thread = threading.get_ident()
        self._steps = steps or []
        self._backward: Any = torch.autograd.backward
        self._torch.autograd.backward = self._traced_backward
        self._collectives: list[tuple[Any, str, Any]] = []
        if torch.distributed.is_available():
            places: list[tuple[Any, str]] = [(torch.distributed, name) for name in COLLECTIVES]
            places.append((torch.distributed.Work, "wait"))
            # The collectives of sharded tensors, if the script uses them.
            functional: Any = sys.modules.get("torch.distributed._functional_collectives")
            places += [(functional, name) for name in FUNCTIONAL]
            places.append((getattr(sys.modules.get("dpexp.exchange"), "SharedMemoryGroup", None), "exchange"))
            self._collectives = [(place, name, getattr(place, name)) for place, name in places if hasattr(place, name)]
        for place, name, function in self._collectives:
            setattr(place, name, self._traced(function))
        self._trained: dict[int, bool] = {}  # modules, by their ids
        self._hooked: set[int] = set()  # ids of parameters
        self._is_in_backward = self._is_in_sync_point = False
        # One hook until the end: adding or removing hooks would disturb other threads that call modules.
        self._handles = [torch.nn.modules.module.register_module_forward_pre_hook(self._on_forward)]
        self._hook([parameter for group in optimizer.param_groups for parameter in group["params"]])
        self._last = time.perf_counter()
        self._begin_step()

    def _begin_step(self) -> None:
        self._data = self._compute = self._update = 0.0
        self._gradient: float | None = None  # when the last gradient of a `backward` was ready
        self._points_before_gradient = 0  # number of sync points until then
        self._sync_points: list[tuple[float, float]] = []  # of each: the arrival, and the seconds until it was over
        self._waits_for_data = True

    def _hook(self, parameters: list[Any]) -> None:
        """Watch for the gradients of these parameters; other optimizers may update some of them."""
        for parameter in parameters:
            if id(parameter) not in self._hooked and parameter.requires_grad and parameter.is_leaf:
                self._hooked.add(id(parameter))
                self._handles.append(parameter.register_post_accumulate_grad_hook(self._on_gradient))

    def _on_forward(self, module: Any, args: Any) -> None:
        """Called at the first call of a trained module after a step, or after `backward`."""
        if not self._waits_for_data or threading.get_ident() != self._thread:
            return
        if id(module) not in self._trained:
            trained = _trainable(module)
            self._trained[id(module)] = bool(trained)
            self._hook(trained)
        if self._trained[id(module)]:
            self._waits_for_data = False
            now = time.perf_counter()
            self._data += now - self._last
            self._last = now

    def _on_gradient(self, parameter: Any) -> None:
        self._gradient, self._points_before_gradient = time.perf_counter(), len(self._sync_points)

    def _traced_backward(self, *args: Any, **kwargs: Any) -> None:
        if self._is_in_backward or threading.get_ident() != self._thread:  # for example, recomputed activations
            self._backward(*args, **kwargs)
            return
        self._gradient, self._is_in_backward = None, True
        try:
            self._backward(*args, **kwargs)
        finally:
            self._is_in_backward = False
        now = ready = time.perf_counter()
        if self._gradient is not None:
            ready = self._gradient
            # From there on, all is one sync point.
            self._last -= sum(seconds for _, seconds in self._sync_points[self._points_before_gradient :])
            del self._sync_points[self._points_before_gradient :]
        self._sync_points.append((ready, now - ready))
        self._compute += ready - self._last
        self._last = now
        self._waits_for_data = True

    def _traced(self, function: Any) -> Any:
        """Wrap a collective, or the wait for one, to record it as a sync point."""

        def traced(*args: Any, **kwargs: Any) -> Any:
            if self._is_in_sync_point or threading.get_ident() != self._thread:  # for example, a collective that waits
                return function(*args, **kwargs)
            began, self._is_in_sync_point = time.perf_counter(), True
            try:
                return function(*args, **kwargs)
            finally:
                self._is_in_sync_point = False
                seconds = time.perf_counter() - began
                self._sync_points.append((began, seconds))
                self._last += seconds  # not part of the current phase

        return traced

    def end_step(self, now: float) -> None:
        """Called at the end of each step."""
        self._update += now - self._last
        self._last = now
        self._steps.append((self._data, self._compute, self._update, self._sync_points))
        self._begin_step()

    def end(self) -> list[Any]:
        """Remove all hooks; return for each step the seconds of data, compute and update, and its sync points."""
        self._torch.autograd.backward = self._backward
        for place, name, function in self._collectives:
            setattr(place, name, function)
        for handle in self._handles:
            handle.remove()
        return self._steps


def _trainable(module: Any) -> list[Any]:
    """Return the module's parameters that are trained."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
