"""Train a classifier with Lightning, which starts its processes itself: python lightning_train.py --devices 2"""

import argparse

import lightning
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Classifier(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 10))

    def training_step(self, batch, batch_index):
        inputs, labels = batch
        return F.cross_entropy(self.network(inputs), labels)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class SharedMemory(lightning.Callback):
    def on_train_start(self, trainer, module):
        from dpexp import exchange

        exchange.use_shared_memory(trainer.strategy.model)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=64, help="of each process")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--shared-memory", action="store_true", help="exchange gradients there")
    arguments = parser.parse_args()

    lightning.seed_everything(0)
    dataset = TensorDataset(torch.randn(40_000, 784), torch.randint(10, (40_000,)))
    loader = DataLoader(dataset, batch_size=arguments.batch_size, shuffle=True, num_workers=1, drop_last=True)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=arguments.devices,
        strategy="ddp" if arguments.devices > 1 else "auto",
        max_epochs=arguments.epochs,
        callbacks=[SharedMemory()] if arguments.shared_memory and arguments.devices > 1 else [],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(Classifier(), loader)


if __name__ == "__main__":
    main()
