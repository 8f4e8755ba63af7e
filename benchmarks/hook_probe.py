"""One process of the default training in windows with and without dpexp's clock; prints the ratio of their times."""

from __future__ import annotations

import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import optimizer as optimizers

from dpexp.launchers.command_processes import SCRIPT_HOOK

WINDOWS, STEPS, BATCH = 200, 20, 64


def main() -> None:
    """The median over neighbouring windows."""
    sys.path.insert(0, str(SCRIPT_HOOK))
    from dpexp_clock import StepClock  # type: ignore[import-not-found]

    torch.manual_seed(0)
    inputs, labels = torch.randn(STEPS * BATCH, 784), torch.randint(10, (STEPS * BATCH,))
    model = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def window() -> float:
        started = time.perf_counter()
        for batch in range(0, STEPS * BATCH, BATCH):
            F.cross_entropy(model(inputs[batch : batch + BATCH]), labels[batch : batch + BATCH]).backward()
            optimizer.step()
            optimizer.zero_grad()
        return time.perf_counter() - started

    def hooked_window() -> float:
        clock = StepClock()
        clock._optimizer, clock._times = optimizer, [0.0]
        clock._pause_at = clock._synchronize_at = 0  # which never comes
        handles = [
            optimizers.register_optimizer_step_pre_hook(clock.before_step),
            optimizers.register_optimizer_step_post_hook(clock.after_step),
        ]
        seconds = window()
        for handle in handles:
            handle.remove()
        return seconds

    window()
    ratios = []
    for number in range(WINDOWS):
        if number % 2:
            hooked, unhooked = hooked_window(), window()
        else:
            unhooked, hooked = window(), hooked_window()
        ratios.append(hooked / unhooked)
    print(statistics.median(ratios))


if __name__ == "__main__":
    main()
