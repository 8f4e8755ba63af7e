"""The slow worker: the one that the others wait for, and the phase in which it takes longer in most steps.

The worker that waits least arrived last. If all of its phases are longer by the same factor, that doesn't count: its
core is slow, usually only for some seconds.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from dpexp.analysis.ratio_estimate import estimate_log_mean, pool_blocks
from dpexp.phases import USEFUL
from dpexp.results.schema import Arm

MIN_STEPS = 12  # recorded steps that are needed
MIN_DELAY = 0.03  # share of a step
MIN_LONGER_SHARE = 0.5  # share of the steps in which a slow worker's phase must take longer
MIN_DELAYED_SHARE = 0.25  # share of the steps that it must delay: if workers share cores, others may be even later
MIN_VARIATION_RATIO = 1.25  # relative variation of a phase over that of the update, above which samples are the cause


def find_slow_worker(arms: Sequence[Arm], baseline: Sequence[Arm]) -> dict[str, Any]:
    """Return the columns that name the slow worker of an arm; {} if no worker stands out."""
    recorded = [arm for arm in arms if arm.phases and len(arm.processes) > 1]
    if sum(len(arm.phases["data"]) for arm in recorded) < MIN_STEPS:
        return {}
    blocks = [_delays(arm) for arm in recorded]
    late, longer, seconds, _, does_delay = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    shares = does_delay.mean(0)
    rank, phase = (int(at) for at in np.unravel_index(shares.argmax(), shares.shape))
    is_longer = [block.is_longer[:, rank, phase] for block in blocks]
    is_delaying = [block.does_delay[:, rank, phase] for block in blocks]
    if _are_surely_more(is_longer, MIN_LONGER_SHARE) and _are_surely_more(is_delaying, MIN_DELAYED_SHARE):
        hosts = [process.host for process in recorded[0].processes]
        longer_seconds = longer[:, rank, phase]
        return {
            "slow_rank": rank,
            "slow_host": hosts[rank] if len({*hosts}) > 1 else "",
            "slow_phase": USEFUL[phase],
            "slow_share": float(shares[rank, phase]),
            "slow_seconds": float(np.median(longer_seconds)),
            "slow_loss": float(np.median(longer_seconds / seconds)),
        }
    longer_in_last = np.median(longer[np.arange(len(late)), late.argmax(1)], 0)
    phase, lateness = int(longer_in_last.argmax()), np.median(late.max(1))
    is_late = lateness > MIN_DELAY * np.median(seconds) and longer_in_last[phase] > lateness / 2
    if is_late and _differs_by_samples(phase, lateness / 2, [arm for arm in baseline if arm.phases]):
        return {"slow_phase": USEFUL[phase], "slow_seconds": float(longer_in_last[phase])}
    return {}


def _differs_by_samples(phase: int, seconds: float, baseline: Sequence[Arm]) -> bool:
    """Whether a phase of one process varies that much between steps because its samples differ.

    What slows a core down changes the update, too, whose work is always the same.
    """
    if not baseline:
        return False
    useful = [np.stack([arm.phases[name] for name in USEFUL], 2) for arm in baseline]
    usual = np.median(np.concatenate(useful), (0, 1))
    change = np.median(np.concatenate([np.abs(np.diff(steps, axis=0)) for steps in useful]), (0, 1))
    update = USEFUL.index("update")  # not divided by, since it may be 0 in most steps
    in_proportion = change[phase] * usual[update] > MIN_VARIATION_RATIO * change[update] * usual[phase]
    return bool(change[phase] > seconds and in_proportion)


def _are_surely_more(blocks: Sequence[np.ndarray], share: float) -> bool:
    """Whether the interval of the share of True steps is above `share`, and each block has more than half of it."""
    pooled = pool_blocks([estimate_log_mean(steps[:, None]) for steps in blocks if steps.any()])  # type: ignore[arg-type]
    return pooled is not None and min(steps.mean() for steps in blocks) > share / 2 and pooled.estimate().low > share


class Delays(NamedTuple):
    """What the workers of an arm wait for, in each recorded step."""

    late: np.ndarray  # seconds by which a worker comes after the last other one (steps, workers)
    longer: np.ndarray  # seconds by which a phase takes longer than the others' median (steps, workers, phases)
    step_seconds: np.ndarray  # (steps,)
    is_longer: np.ndarray  # whether a phase takes longer, beyond what the worker's other phases do: as `longer`
    does_delay: np.ndarray  # whether this delays the step; shape as `longer`


def _delays(arm: Arm) -> Delays:
    waits = np.asarray(arm.phases.get("wait", arm.phases["communicate"]))  # without a wait phase, it includes waiting
    late = _reduce_others(np.min, waits) - waits
    seconds = np.sum(list(arm.phases.values()), 0).max(1)
    useful = np.stack([arm.phases[phase] for phase in USEFUL], 2)
    others = _reduce_others(np.median, useful)
    factors = np.divide(useful, others, out=np.ones_like(useful), where=others > 0)
    slowness = np.stack([np.delete(factors, at, 2).min(2) for at in range(len(USEFUL))], 2)  # in its other phases
    beyond = useful - np.maximum(1, slowness) * others
    min_delay = MIN_DELAY * seconds[:, None, None]
    delay = np.minimum(late[:, :, None], beyond)
    return Delays(late, useful - others, seconds, beyond > min_delay, delay > min_delay)


def _reduce_others(combine: Callable[..., np.ndarray], values: np.ndarray) -> np.ndarray:
    """Apply a function to the values (steps, workers, ...) of all other workers in a step."""
    return np.stack([combine(np.delete(values, rank, 1), 1) for rank in range(values.shape[1])], 1)
