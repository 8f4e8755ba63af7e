"""Parameters and their gradients in shared memory, cut into buckets, and each bucket into a chunk for each team.

A team publishes the parts of its gradient that belong to other teams' chunks. Then it adds up its chunk of all others'
gradients, and its own part onto that, which so is never copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from dpexp.strategies.late_gradients import LateGradient

Late = Mapping[torch.Tensor, LateGradient]


@dataclass(frozen=True)
class Part:
    """Some rows of a parameter, and where their gradient is wanted."""

    parameter: nn.Parameter
    rows: slice | None  # None: all
    place: torch.Tensor  # of the rows' shape

    @property
    def gradient(self) -> torch.Tensor | None:
        """That autograd has computed; None where no sample of this rank used the parameter."""
        gradient = self.parameter.grad
        return gradient if gradient is None or self.rows is None else gradient[self.rows]


class Parts:
    """Whose gradients are written together."""

    def __init__(self, parts: Sequence[Part], late: Late) -> None:
        self._plain = [part for part in parts if part.parameter not in late]
        self._late = [(late[part.parameter], part) for part in parts if part.parameter in late]

    def multiply(self, adds: bool) -> None:
        """Multiply the late gradients into their places or, with `adds`, onto what is there."""
        for late, part in self._late:
            late.write(part.place, part.rows, adds)

    def write(self, adds: bool) -> None:
        """Copy or add the gradients that autograd has computed; late ones must have been multiplied."""
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
        for _, part in self._late:
            gradient = part.gradient
            if gradient is not None:  # of earlier parts of the batch
                part.place.add_(gradient)


class ChunkSum:
    """A team's part in a reduce-scatter: the sum of all teams' published gradients of its chunk, in a fixed order."""

    def __init__(self, buffers: torch.Tensor, team: int, chunk: slice, with_own: bool) -> None:
        """`buffers` (teams, n) have the gradients; `with_own`: this team's too, from ranks that computed before."""
        terms = [buffer[chunk] for buffer in buffers]
        own = terms.pop(team)
        self._terms = [own, *terms] if with_own else terms
        self.total: torch.Tensor = (
            self._terms[0] if len(self._terms) == 1 else own
        )  # nobody else reads or writes that now

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
    late: list[LateGradient]  # theirs, where these have some
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
        bounds = [start + bound for bound in chunk_bounds(members, len(buffers))]
        chunk = slice(bounds[team], bounds[team + 1])
        total = ChunkSum(buffers, team, chunk, with_own=not is_first)
        published: list[Part] = []
        kept: list[Part] = []
        for parameter in members:
            whole = slice(start, start + parameter.numel())
            parameter.data = flat[whole].view_as(parameter)
            for elements, rows, shape in _cut_rows(parameter, start, chunk):
                within = slice(elements.start - chunk.start, elements.stop - chunk.start)
                keeps = is_last and within.start >= 0 and elements.stop <= chunk.stop
                place = total.total[within] if keeps else buffers[team, elements]
                (kept if keeps else published).append(Part(parameter, rows, place.view(shape)))
            start = whole.stop
        own = [late[parameter] for parameter in members if parameter in late]
        buckets.append(Bucket(members, own, flat[chunk], total, Parts(published, late), Parts(kept, late)))
    return buckets


def chunk_bounds(parameters: Sequence[torch.Tensor], teams: int) -> list[int]:
    """Where each team's chunk begins, and where the last one ends: as even as whole rows (of dimension 0) allow."""
    elements = sum(parameter.numel() for parameter in parameters)
    bounds, start = [0], 0
    for parameter in parameters:
        row = max(1, parameter.numel() // _row_count(parameter))
        while len(bounds) < teams and (wanted := elements * len(bounds) / teams) <= start + parameter.numel():
            bounds.append(start + round((wanted - start) / row) * row)
        start += parameter.numel()
    return [*bounds, elements]


def _cut_rows(
    parameter: torch.Tensor, start: int, chunk: slice
) -> Iterator[tuple[slice, slice | None, tuple[int, ...]]]:
    """The parts of a parameter before, in and after a chunk: elements of the buffer, rows, and the part's shape."""
    stop = start + parameter.numel()
    inner = [min(max(bound, start), stop) for bound in (chunk.start, chunk.stop)]
    for first, last in zip([start, *inner], [*inner, stop], strict=True):
        if first == start and last == stop:
            yield slice(start, stop), None, tuple(parameter.shape)
        elif first < last:
            row = parameter.numel() // _row_count(parameter)
            rows = slice((first - start) // row, (last - start) // row)
            yield slice(first, last), rows, (rows.stop - rows.start, *parameter.shape[1:])


def _row_count(parameter: torch.Tensor) -> int:
    return max(1, parameter.shape[0]) if parameter.dim() else 1


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
