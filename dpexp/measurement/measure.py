"""The measurement loop: blocks of arms that take turns, until the budget ends them."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from dpexp.config.job import JobConfig
from dpexp.measurement.budget import Budget
from dpexp.measurement.conditions import Watch
from dpexp.measurement.rounds import Rounds
from dpexp.measurement.trainer import TimedSteps, Trainer
from dpexp.results.schema import Block

OnProgress = Callable[[str, float], None]
"""Receives the current activity in words, and the fraction of the job's time that has passed."""

OnWarm = Callable[[Mapping[str, TimedSteps]], float]
"""Receives the arms after their warm-up; returns the seconds that the job needs after its last block."""


def measure(
    trainer: Trainer,
    variants: Mapping[str, JobConfig],
    budget: Budget,
    earlier: Sequence[Block] = (),
    on_progress: OnProgress = lambda text, done: None,
    on_warm: OnWarm = lambda warm: 0.0,
) -> Iterator[Block]:
    """Yield each block of the arms as soon as it is finished, discarded ones first. Raises WorkerError.

    The order of the arms alternates, so that a drift of the machine's speed favours no arm. `earlier` are blocks from
    before an interruption. `variants` may be changed between blocks.
    """
    settings, kept, discarded = budget.measurement, list(earlier), 0
    while discarded < settings.warmup or not budget.is_over(kept):
        warmup = discarded < settings.warmup  # anew after an interruption: the machine is cold again
        watch, started = Watch(), time.monotonic()
        names = sorted(variants, reverse=(len(kept) + discarded) % 2 == 1)
        on_progress(f"block {len(kept) + 1}", budget.done_fraction)
        with trainer.running({name: variants[name] for name in names}) as running:
            rounds = Rounds(trainer.pace, names, seed=len(kept))
            rounds.warm_up(running, settings.warmup_steps)
            budget.begin_rounds(rounds, time.monotonic() - started, on_warm(rounds.timed))

            def is_enough(seconds: float, rounds: Rounds = rounds) -> bool:
                on_progress(f"block {len(kept) + 1}", budget.done_fraction)
                return budget.block_is_long_enough(rounds, kept, seconds)

            rounds.make_until(running, is_enough)
            arms = running.end(rounds.timed)
        cpu_seconds = sum(process.process_cpu_seconds for arm in arms.values() for process in arm.processes)
        block = Block(warmup, arms, watch.conditions(cpu_seconds), time.monotonic() - started)
        if warmup:
            discarded += 1
        else:
            kept.append(block)
        yield block
