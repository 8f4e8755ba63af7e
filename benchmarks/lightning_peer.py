"""A program of its own: train the same model by Lightning's Trainer; prints the seconds of its training loop.

python -m benchmarks.lightning_peer WORKERS SAMPLES EPOCHS BATCH
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning
import torch
import torch.nn.functional as F
from torch.multiprocessing.spawn import ProcessExitedException
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.peers import mlp
from benchmarks.setup import configured
from dpexp.train.data.dataset import load


class Module(lightning.LightningModule):
    """The MLP, and a clock from the start of the training loop to its end, on rank 0."""

    def __init__(self, clock: Path) -> None:
        super().__init__()
        self._model, self._clock = mlp(), clock

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], number: int) -> torch.Tensor:
        """See LightningModule."""
        inputs, labels = batch
        return F.cross_entropy(self._model(inputs), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """See LightningModule."""
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def on_train_start(self) -> None:
        """See LightningModule."""
        self._started = time.perf_counter()

    def on_train_end(self) -> None:
        """See LightningModule."""
        if self.global_rank == 0:
            self._clock.write_text(str(time.perf_counter() - self._started))


def main() -> None:
    """Train once."""
    workers, samples, epochs, batch = map(int, sys.argv[1:])
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    tensors = load(configured(f"data.size={samples}")).tensors
    data = TensorDataset(tensors["train_inputs"].clone(), tensors["train_labels"].clone())
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    with TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            accelerator="cpu",
            devices=workers,
            strategy="ddp_spawn" if workers > 1 else "auto",
            max_epochs=epochs,
            default_root_dir=folder,
            **quiet,
        )
        clock = Path(folder) / "seconds"
        try:
            trainer.fit(Module(clock), DataLoader(data, batch_size=batch, shuffle=True))
        except ProcessExitedException:  # gloo's threads sometimes abort a process that ends: the training is over then
            if not clock.exists():
                raise
        print(clock.read_text())


if __name__ == "__main__":
    main()
