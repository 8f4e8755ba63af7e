"""Reduce-scatter through shared memory: each rank sums one chunk of all ranks' gradients."""

from collections.abc import Sequence

import torch
from torch import nn

from dpexp.processes.shared_memory import chunk_bounds


class ReduceScatter:
    """One rank's part: it publishes its gradient in its own row, then sums its chunk of all rows."""

    def __init__(
        self, parameters: list[nn.Parameter], flat: torch.Tensor, gradients: torch.Tensor, row: int, adds: bool = False
    ) -> None:
        """`flat` (n,) contains all parameters in order; `gradients` (rows, n) the ranks' gradients in the same order.

        If ranks share a row, the first one of a step writes its gradient there, and the others add to it (`adds`).
        """
        self.parameters = parameters
        self._adds = adds
        self._published = views(parameters, gradients[row])
        bounds = chunk_bounds(flat, len(gradients))
        chunk = slice(bounds[row], bounds[row + 1])
        self.chunk = flat[chunk]  # this rank's chunk of the parameters
        # The sum is made in this rank's row: no other rank reads this chunk of it.
        self.total, *self._others = [gradient[chunk] for gradient in (*gradients[row:], *gradients[:row])]

    def publish(self) -> None:
        """Write, or add, the gradient where all ranks read it, and remove it from the parameters."""
        places, gradients = [], []
        for parameter, place in zip(self.parameters, self._published, strict=True):
            if parameter.grad is not None:
                places.append(place)
                gradients.append(parameter.grad)
            elif not self._adds:
                place.zero_()  # no sample of this rank used the parameter
            parameter.grad = None
        if places:
            (torch._foreach_add_ if self._adds else torch._foreach_copy_)(places, gradients)

    def sum_chunk(self) -> None:
        """Compute `total`, in a fixed order, once all ranks have published their gradients."""
        for other in self._others:
            self.total.add_(other)


def views(parameters: Sequence[nn.Parameter], flat: torch.Tensor) -> list[torch.Tensor]:
    """Return views of `flat` with the parameters' shapes, one after another."""
    sizes = [parameter.numel() for parameter in parameters]
    return [part.view_as(parameter) for part, parameter in zip(flat.split(sizes), parameters, strict=True)]
