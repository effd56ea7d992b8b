"""The task: multiplication modulo a prime, as equations of four tokens (Power et al., arXiv:2201.02177)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Task(NamedTuple):
    """All equations ``x * y = answer (mod modulus)``, half for training.

    ``train`` and ``validation`` are int64 [equations, 4] of tokens x, ``*``, y, ``=``; the answers
    are int64 [equations]. Tokens 0 to modulus - 1 are numbers, then come ``=`` and ``*``.
    """

    modulus: int
    train: Tensor
    train_answers: Tensor
    validation: Tensor
    validation_answers: Tensor

    @property
    def token_count(self) -> int:
        """How many tokens there are: the numbers, ``*`` and ``=``."""
        return self.modulus + 2


def modular_multiplication(random: torch.Generator, modulus: int = 97, device: str = "cpu") -> Task:
    """Builds the task; x runs from 0, y from 1 to modulus - 1.

    Args:
        random: Decides which half is for training.
        modulus: A prime. (default: 97, which gives 9,312 equations)
        device: Where the tensors live. (default: "cpu")
    """
    x, y = torch.cartesian_prod(torch.arange(modulus), torch.arange(1, modulus)).unbind(1)
    equals, times = torch.full_like(x, modulus), torch.full_like(x, modulus + 1)
    equations = torch.stack([x, times, y, equals], dim=1)
    answers = x * y % modulus
    order = torch.randperm(len(equations), generator=random)
    halves = order.tensor_split([len(order) // 2])
    tensors = [part[half].to(device) for half in halves for part in (equations, answers)]
    return Task(modulus, *tensors)
