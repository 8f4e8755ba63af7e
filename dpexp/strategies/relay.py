"""Ranks that share a core take turns in each step, so that none interrupts another and the core's caches stay warm."""

from __future__ import annotations

from dataclasses import dataclass

from dpexp.processes.barrier import Counter


@dataclass(frozen=True)
class Relay:
    """One rank's part: it goes when the rank before it has gone, and the first one when the last has.

    Ranks are dealt to teams like cards: rank r belongs to team r mod the number of teams.
    """

    team: int
    is_first: bool = True
    is_last: bool = True
    batons: tuple[Counter, Counter] | None = None  # to wait for, and to pass on; None in a team of one

    @classmethod
    def create(cls, ranks: int, teams: int) -> list[Relay]:
        """The parts of all ranks."""
        batons = [Counter.create() for _ in range(ranks)]
        relays = []
        for rank, baton in enumerate(batons):
            team, is_first, is_last = rank % teams, rank < teams, rank + teams >= ranks
            following = batons[team if is_last else rank + teams]
            relays.append(cls(team, is_first, is_last, None if following is baton else (baton, following)))
            if is_first:
                baton.post()
        return relays

    def receive(self) -> None:
        """Return when it is this rank's turn."""
        assert self.batons is not None
        self.batons[0].wait(0.0)

    def pass_on(self) -> None:
        """It is the next rank's turn."""
        assert self.batons is not None
        self.batons[1].post()

    def close(self) -> None:
        """Close this process's descriptors of what this rank waits for."""
        if self.batons is not None:
            self.batons[0].close()
