"""A turn: the message with which dpexp lets an arm make some steps, whether it is a built-in training or a script.

All other arms of a block sleep meanwhile. The arm answers with the times of its steps, and sleeps until its next turn.
A script's processes receive a turn as a tuple (see script_hook/dpexp_clock.py).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Turn:
    """The steps that an arm may make: first untimed ones, since caches have to be filled again."""

    untimed_steps: int
    timed_steps: int
    traced: bool = False  # a script's hooks record phases (built-in trainings record them in all timed steps)
    warmup: bool = False  # no phases are recorded: libraries and caches are cold

    @property
    def steps(self) -> int:
        """All steps of the turn."""
        return self.untimed_steps + self.timed_steps
