"""A perceptron: linear layers with ReLU between them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn


def perceptron(widths: Sequence[int], scale: float = 1.0) -> nn.Sequential:
    """Returns one that flattens its inputs, with torch's first weights and biases times ``scale``."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    with torch.no_grad():
        for param in model.parameters():
            param.mul_(scale)
    return model
