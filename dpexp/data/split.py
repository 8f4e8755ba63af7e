"""One split of a data set, as it comes from its source."""

from __future__ import annotations

from typing import NamedTuple

import torch

from dpexp.data.mapped import MappedInputs


class Split(NamedTuple):
    """Samples and their classes."""

    inputs: torch.Tensor | MappedInputs  # (n, *shape)
    labels: torch.Tensor  # (n,)
