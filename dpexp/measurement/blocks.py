"""The measurement loop: arms take turns until the ratio is precise or the time is used up.

The load of other programs is recorded.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import psutil

from dpexp.config.job import JobConfig
from dpexp.machine import cgroups
from dpexp.measurement.budget import Budget
from dpexp.measurement.rounds import Rounds
from dpexp.measurement.trainer import Trainer
from dpexp.processes import fork_server
from dpexp.results.schema import Block, Conditions

OnProgress = Callable[[str, float], None]
"""Receives the current activity in words, and the fraction of the job's time that has passed."""

ChooseArms = Callable[[Sequence[Block]], Mapping[str, JobConfig]]
"""Receives the blocks so far; returns the arms of the next block."""


def run_blocks(
    trainer: Trainer,
    choose_arms: ChooseArms,
    budget: Budget,
    earlier: Sequence[Block] = (),
    on_progress: OnProgress = lambda text, done: None,
) -> Iterator[Block]:
    """Yield each block of the arms as soon as it is finished. Raises WorkerError.

    The order of the arms alternates, so that a drift of the machine's speed favours no arm. `earlier` are blocks from
    before an interruption.
    """
    blocks = list(earlier)
    while not budget.is_over(blocks):
        load, started = LoadMonitor(), time.monotonic()
        configs = choose_arms(blocks)
        names = sorted(configs, reverse=len(blocks) % 2 == 1)
        on_progress(f"block {len(blocks) + 1}", budget.done_fraction)
        with trainer.running({name: configs[name] for name in names}) as running:
            rounds = Rounds(trainer.pace(configs), names, seed=len(blocks))
            rounds.warm_up(running, budget.measurement.warmup_steps)
            budget.begin_rounds(rounds, time.monotonic() - started)

            def is_enough(seconds: float, rounds: Rounds = rounds) -> bool:
                on_progress(f"block {len(blocks) + 1}", budget.done_fraction)
                return budget.block_is_long_enough(rounds, blocks, seconds)

            rounds.run_until(running, is_enough)
            arms = running.end(rounds.timed)
        cpu_seconds = sum(arm.cpu_seconds for arm in arms.values())
        blocks.append(Block(arms, load.conditions(cpu_seconds), time.monotonic() - started))
        yield blocks[-1]


class LoadMonitor:
    """Watches the load of other programs on the machine from its creation until `conditions`."""

    def __init__(self) -> None:
        self._started, self._main_cpu = time.monotonic(), time.process_time()
        self._server_cpu = fork_server.cpu_seconds()
        self._busy, self._stolen = _busy_and_stolen_seconds()
        self._throttled = cgroups.throttled_seconds()

    def conditions(self, scripts_cpu_seconds: float) -> Conditions:
        """Return the observed conditions; `scripts_cpu_seconds` is the CPU time of the processes of scripts."""
        wall = max(time.monotonic() - self._started, 1e-3)
        busy, stolen = _busy_and_stolen_seconds()
        workers = fork_server.cpu_seconds() - self._server_cpu
        ours = time.process_time() - self._main_cpu + workers + scripts_cpu_seconds
        return Conditions(
            other_cores=max(0.0, busy - self._busy - ours) / wall,
            stolen_cores=max(0.0, stolen - self._stolen) / wall,
            throttled_seconds=max(0.0, cgroups.throttled_seconds() - self._throttled),
        )


def _busy_and_stolen_seconds() -> tuple[float, float]:
    """Return the seconds of all cores in which any program ran, and in which the host took them away."""
    times = psutil.cpu_times()
    busy = sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq"))
    return busy, getattr(times, "steal", 0.0)
