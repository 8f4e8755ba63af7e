"""Parameters and their gradients in shared memory, cut into buckets, and each bucket into a chunk for each team."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from dpexp.processes.shared_memory import ALIGNMENT_BYTES


class ChunkSum:
    """Team r's part in a reduce-scatter: the sum of all teams' r-th chunk, in their order."""

    def __init__(self, buffers: torch.Tensor, team: int) -> None:
        """`buffers` (teams, n), n divisible by their number, are all gradients."""
        self._terms = [buffer.chunk(len(buffers))[team] for buffer in buffers]
        # The first two may overwrite their own term: it is read no later than the first sum is written.
        self.total = self._terms[team] if team < 2 else torch.empty_like(self._terms[team])

    def compute(self) -> torch.Tensor:
        """The sum (n / teams,), in memory that is used again. All gradients must have been written."""
        first, *others = self._terms
        for number, term in enumerate(others):
            torch.add(self.total if number else first, term, out=self.total)
        return self.total


@dataclass(frozen=True)
class Bucket:
    """Parameters whose gradients are exchanged together, as one team has them."""

    places: dict[torch.Tensor, torch.Tensor]  # of each parameter's gradient, in this team's buffer
    chunk: torch.Tensor  # of the parameters: the part that this team updates
    sum: ChunkSum
    used: int  # elements of the chunk; the rest is padding

    def publish(self, adds: bool) -> None:
        """Take the gradients off the parameters, to their places unless backward wrote them there.

        With `adds`, they are added to what is there.
        """
        places, gradients = [], []
        for parameter, place in self.places.items():
            gradient, parameter.grad = parameter.grad, None
            if gradient is None:  # no sample of this rank used the parameter
                if not adds:
                    place.zero_()
            elif gradient is not place:
                places.append(place)
                gradients.append(gradient)
        if places:
            (torch._foreach_add_ if adds else torch._foreach_copy_)(places, gradients)


def cut(
    parameters: Sequence[nn.Parameter], flat: torch.Tensor, buffers: torch.Tensor, team: int, bucket_bytes: float
) -> list[Bucket]:
    """The buckets, each but the last of at least `bucket_bytes`, in the order in which backward completes them.

    The parameters, which are in the model's order, move to `flat` (n,).
    `buffers` (teams, n) receive the
    gradients; n is the `padded_size` of all elements.
    """
    buckets, start = [], 0
    for members in _groups(parameters, bucket_bytes):
        elements = sum(parameter.numel() for parameter in members)
        whole = slice(start, start + padded_size(elements, len(buffers), flat.dtype))
        places: dict[torch.Tensor, torch.Tensor] = {}
        position = start
        for parameter in members:
            place = slice(position, position + parameter.numel())
            parameter.data = flat[place].view_as(parameter)
            places[parameter] = buffers[team, place].view_as(parameter)
            position += parameter.numel()
        chunk = flat[whole].chunk(len(buffers))[team]
        used = min(max(elements - team * len(chunk), 0), len(chunk))
        buckets.append(Bucket(places, chunk, ChunkSum(buffers[:, whole], team), used))
        start = whole.stop
    return buckets


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


def padded_size(elements: int, teams: int, dtype: torch.dtype, bucket_bytes: float = float("inf")) -> int:
    """The elements of a buffer in which every bucket splits into equal chunks of whole cache lines, one a team."""
    line = teams * ALIGNMENT_BYTES // dtype.itemsize
    buckets = 1 + int(elements * dtype.itemsize / bucket_bytes)  # at most: all but the last are full
    return (-(-elements // line) + buckets - 1) * line
