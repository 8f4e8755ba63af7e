"""An ordinary training script, which calibration measures from outside. It trains until it is ended."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
inputs, labels = torch.rand(6400, 784), torch.randint(10, (6400,))
while True:
    for batch in torch.randperm(len(inputs)).split(64):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs[batch]), labels[batch]).backward()
        optimizer.step()
