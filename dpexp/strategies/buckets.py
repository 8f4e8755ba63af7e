"""Parameters and their gradients in shared memory, cut into buckets, and each bucket into a chunk for each team.

A team publishes the parts of its gradient that belong to other teams' chunks. Then it adds up its chunk of the others'
gradients, and its own part onto that: what nobody else reads is not published.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from dpexp.processes.shared_memory import ALIGNMENT_BYTES
from dpexp.strategies.late_gradients import LateGradient

Late = Mapping[torch.Tensor, LateGradient]


@dataclass(frozen=True)
class Part:
    """A part of a parameter, and where its gradient is wanted: whole rows of a late one, else any elements."""

    parameter: nn.Parameter
    rows: slice | None  # of a late gradient; None: all
    elements: slice | None  # of the flattened parameter, where the gradient isn't late; None: all
    place: torch.Tensor  # of the parameter's shape or that of its rows, else flat

    @property
    def gradient(self) -> torch.Tensor | None:
        """The gradient that autograd has computed; None where no sample of this rank used the parameter."""
        gradient = self.parameter.grad
        if gradient is None:
            return None
        if self.rows is not None:
            return gradient[self.rows]
        return gradient if self.elements is None else gradient.reshape(-1)[self.elements]


class Parts:
    """Parts of parameters whose gradients are written at the same time."""

    def __init__(self, parts: Sequence[Part], late: Late) -> None:
        self._plain = [part for part in parts if part.parameter not in late]
        self._late = [(part, late[part.parameter]) for part in parts if part.parameter in late]

    def multiply(self, adds: bool) -> None:
        """Make the products of late gradients, in their places or, with `adds`, added to what is there."""
        for part, late in self._late:
            late.write(part.place, part.rows, adds)

    def write(self, adds: bool) -> None:
        """Copy or add all other gradients; products must have been made before."""
        places, gradients = [], []
        for part in self._plain:
            gradient = part.gradient
            if gradient is not None:
                places.append(part.place)
                gradients.append(gradient)
            elif not adds:
                part.place.zero_()
        if places:
            (torch._foreach_add_ if adds else torch._foreach_copy_)(places, gradients)
        for part, _ in self._late:
            gradient = part.gradient
            if gradient is not None:  # of earlier parts of the batch
                part.place.add_(gradient)


class ChunkSum:
    """A team's part in a reduce-scatter: the sum of all teams' published gradients of its chunk, in a fixed order."""

    def __init__(self, buffers: torch.Tensor, team: int, chunk: slice, with_own: bool) -> None:
        """`buffers` (teams, n) have the gradients; `with_own`: this team's too, from ranks that computed before."""
        others = [buffer[chunk] for buffer in buffers]
        own = others.pop(team)
        self._terms = [own, *others] if with_own else others
        # Between the two barriers only this team reads or writes it; with two teams it lies in the other's buffer.
        self.total: torch.Tensor = self._terms[0] if len(self._terms) == 1 else own

    def compute(self) -> torch.Tensor:
        """The sum (n,), in memory that is used again. All gradients must have been published."""
        if len(self._terms) > 1:
            torch.add(*self._terms[:2], out=self.total)
        for term in self._terms[2:]:
            self.total.add_(term)
        return self.total

    @property
    def is_empty(self) -> bool:
        """Whether nothing was published for this team: then `total` has old values."""
        return not self._terms


@dataclass(frozen=True)
class Bucket:
    """Parameters whose gradients are exchanged together, as one rank has them."""

    parameters: list[nn.Parameter]
    late: list[LateGradient]  # of those parameters that have one
    chunk: torch.Tensor  # of the parameters: the part that this rank's team updates
    sum: ChunkSum  # of its gradient
    published: Parts  # for other teams, or for a later rank of this one
    kept: Parts  # the others, whose place is in `sum.total`

    def clear(self) -> None:
        """Take the gradients off the parameters."""
        for parameter in self.parameters:
            parameter.grad = None
        for late in self.late:
            late.clear()


def cut(
    parameters: Sequence[nn.Parameter],
    flat: torch.Tensor,
    buffers: torch.Tensor,
    team: int,
    bucket_bytes: float,
    late: Late,
    is_first: bool = True,
    is_last: bool = True,
) -> list[Bucket]:
    """The buckets, each but the last of at least `bucket_bytes`, in the order in which backward completes them.

    The parameters, which are in the model's order, move to `flat` (n,). `buffers` (teams, n) receive the gradients. Of
    the ranks of a team, the last one sums and updates its chunk; those before it publish all of their gradients, which
    the first one writes and the others add to.
    """
    buckets, start = [], 0
    for members in _groups(parameters, bucket_bytes):
        bounds = [start + bound for bound in chunk_bounds(members, len(buffers), late)]
        chunk = slice(bounds[team], bounds[team + 1])
        keeps = chunk if is_last else slice(start, start)
        total = ChunkSum(buffers, team, chunk, with_own=not is_first)
        published: list[Part] = []
        kept: list[Part] = []
        for parameter in members:
            whole = slice(start, start + parameter.numel())
            parameter.data = flat[whole].view_as(parameter)
            for part in _cut(whole, keeps):
                kept_here = keeps.start <= part.start and part.stop <= keeps.stop
                buffer = total.total[part.start - chunk.start :] if kept_here else buffers[team, part.start :]
                place = buffer[: part.stop - part.start]
                if part == whole:
                    found = Part(parameter, None, None, place.view_as(parameter))
                elif parameter in late:
                    row = parameter.shape[1]
                    rows = slice((part.start - start) // row, (part.stop - start) // row)
                    found = Part(parameter, rows, None, place.view(-1, row))
                else:
                    found = Part(parameter, None, slice(part.start - start, part.stop - start), place)
                (kept if kept_here else published).append(found)
            start = whole.stop
        own = [late[parameter] for parameter in members if parameter in late]
        buckets.append(Bucket(members, own, flat[chunk], total, Parts(published, late), Parts(kept, late)))
    return buckets


def chunk_bounds(parameters: Sequence[torch.Tensor], teams: int, late: Late) -> list[int]:
    """Where each team's chunk begins, and where the last one ends: as even as cache lines allow.

    A late gradient is cut between two rows.
    """
    elements = sum(parameter.numel() for parameter in parameters)
    bounds, start = [0], 0
    for parameter in parameters:
        stop = start + parameter.numel()
        while len(bounds) < teams and (wanted := elements * len(bounds) / teams) <= stop:
            if parameter in late:
                row = parameter.shape[1]
                bounds.append(start + round((wanted - start) / row) * row)
            else:
                line = ALIGNMENT_BYTES // parameter.itemsize
                bounds.append(min(max(round(wanted / line) * line, start), stop))
        start = stop
    return [*bounds, elements]


def _cut(whole: slice, chunk: slice) -> Iterator[slice]:
    """What of a parameter lies before, in and after a chunk."""
    bounds = [min(max(bound, whole.start), whole.stop) for bound in (chunk.start, chunk.stop)]
    for start, stop in zip([whole.start, *bounds], [*bounds, whole.stop], strict=True):
        if start < stop:
            yield slice(start, stop)


def _groups(parameters: Sequence[nn.Parameter], bucket_bytes: float) -> list[list[nn.Parameter]]:
    """The last parameters first, since backward ends with the first; within a group in the model's order."""
    groups: list[list[nn.Parameter]] = [[]]
    group_bytes = 0
    for parameter in reversed(parameters):
        if group_bytes >= bucket_bytes:
            groups.append([])
            group_bytes = 0
        groups[-1].insert(0, parameter)
        group_bytes += parameter.numel() * parameter.itemsize
    return groups
