"""What a measurement needs of whatever trains: one training of each variant, in turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dpexp.config.experiment import ExperimentConfig
from dpexp.results.schema import Block, Training


@dataclass(frozen=True)
class Variant:
    """What one part of a block trains; with `copies`, as many independent processes at once."""

    config: ExperimentConfig
    copies: int | None = None


class Trainer(Protocol):
    """Trains the variants of one job."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of a sample, where it is known; ()."""

    def get_ready(self, config: ExperimentConfig, earlier: Sequence[Block]) -> None:
        """Before the first block; `earlier` are those that were measured before an interruption."""

    def place_anew(self) -> None:
        """Before each block: draw again what differs from command to command."""

    def reseed(self, config: ExperimentConfig) -> None:
        """From now on, start from the weights of this configuration's seed."""

    def train_in_turns(
        self,
        variants: Mapping[str, Variant],
        evaluate: bool = False,
        checkpoint: Path | None = None,
        on_turn: Callable[[float], None] = lambda done: None,
    ) -> dict[str, Training]:
        """One training of each variant, in fresh processes and in this order. Raises WorkerError."""
