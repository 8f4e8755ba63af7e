"""Train with Accelerate, in bfloat16 and with gradient accumulation: accelerate launch accelerate_train.py"""

import argparse

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch-size", type=int, default=32, help="of each process and micro-batch")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--shared-memory", action="store_true", help="exchange gradients there")
    arguments = parser.parse_args()

    accelerator = Accelerator(mixed_precision="bf16", gradient_accumulation_steps=2, cpu=True)
    torch.manual_seed(0)
    dataset = TensorDataset(torch.randn(40_000, 784), torch.randint(10, (40_000,)))
    model = nn.Sequential(nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loader = DataLoader(dataset, batch_size=arguments.batch_size, shuffle=True, drop_last=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    if arguments.shared_memory and accelerator.num_processes > 1:
        from dpexp import exchange

        exchange.use_shared_memory(model)

    for epoch in range(arguments.epochs):
        for inputs, labels in loader:
            with accelerator.accumulate(model):
                loss = F.cross_entropy(model(inputs), labels)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
        accelerator.print(f"epoch {epoch}: loss {loss.item():.3f}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
