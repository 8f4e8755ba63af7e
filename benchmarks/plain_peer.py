"""Runs a program as it is, and prints how many steps a second its optimizers make: python plain_peer.py PROGRAM ..."""

from __future__ import annotations

import os
import runpy
import sys
import time
from typing import Any

from torch.optim.optimizer import register_optimizer_step_post_hook

WARMUP_SECONDS, SECONDS = 1.0, 4.0


class Counter:
    """Ends the process when it has counted long enough."""

    def __init__(self) -> None:
        self._first = self._began = 0.0
        self._steps = 0

    def after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """Called after each step of any optimizer."""
        now = time.perf_counter()
        self._first = self._first or now
        if not self._began:
            if now > self._first + WARMUP_SECONDS:
                self._began = now
            return
        self._steps += 1
        if now > self._began + SECONDS:
            print(f"{self._steps / (now - self._began)} steps a second", flush=True)
            os._exit(0)  # whatever else the program would do, and its threads


if __name__ == "__main__":
    register_optimizer_step_post_hook(Counter().after_step)
    sys.argv = sys.argv[1:]
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))  # noqa: PTH100, PTH120 - as Python does
    runpy.run_path(sys.argv[0], run_name="__main__")
