"""The task and the network of the tickets: addition modulo a prime, by an MLP (arXiv:2310.19470)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, one_hot


class Addition(NamedTuple):
    """Sums of unordered pairs, i <= j, modulo a prime; pairs are int64 [pairs, 2], their sums [pairs]."""

    train: Tensor
    train_sums: Tensor
    test: Tensor
    test_sums: Tensor


def modular_addition(random: torch.Generator, modulus: int = 67, train_share: float = 0.4) -> Addition:
    """Builds the task; 67 gives 2,278 pairs, of which 911 are for training.

    Args:
        random: Decides which pairs are for training.
        modulus: A prime. (default: 67)
        train_share: The share of pairs for training, rounded down. (default: 0.4)
    """
    pairs = torch.combinations(torch.arange(modulus), with_replacement=True)
    sums = pairs.sum(1) % modulus
    order = torch.randperm(len(pairs), generator=random)
    train, test = order.tensor_split([int(train_share * len(pairs))])
    return Addition(pairs[train], sums[train], pairs[test], sums[test])


class MLP(nn.Module):
    """``W_U W_out relu(W_in (E_a + E_b))``, without biases; 115,000 parameters in the paper's size.

    Neighbouring matrices are multiplied first: the same function and gradients, a tenth of the work.

    Args:
        modulus: How many numbers there are.
        random: Draws the weights, normal with variance 1 / inputs of each layer.
        width: Of embedding and unembedding. (default: 500)
        hidden: (default: 48)
    """

    def __init__(self, modulus: int, random: torch.Generator, width: int = 500, hidden: int = 48) -> None:
        super().__init__()
        self.embed, self.w_in, self.w_out, self.unembed = (
            nn.Parameter(torch.randn(outputs, inputs, generator=random) / inputs**0.5)
            for outputs, inputs in ((width, modulus), (hidden, width), (width, hidden), (modulus, width))
        )

    def forward(self, pairs: Tensor) -> Tensor:
        """Maps pairs, int64 [batch, 2], or how often each number occurs, [batch, modulus], to logits."""
        counts = pairs
        if not pairs.is_floating_point():
            counts = one_hot(pairs, self.embed.shape[1]).sum(1).to(self.embed.dtype)
        hidden = linear(counts, self.w_in @ self.embed).relu()
        logits: Tensor = linear(hidden, self.unembed @ self.w_out)
        return logits


def loss_of(logits: Tensor, sums: Tensor) -> Tensor:
    """Cross entropy in float64: in float32 it is 0 long before the network has generalised."""
    return cross_entropy(logits.double(), sums)


def accuracy(model: nn.Module, pairs: Tensor, sums: Tensor) -> float:
    """Returns the share of sums that are right."""
    with torch.no_grad():
        return float((model(pairs).argmax(1) == sums).double().mean())
