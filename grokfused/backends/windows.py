"""The sum of the last gradients of an element, in the time of one: this file belongs to the truth.

A ring of planes holds the gradients, ``grad_window``, and ``grad_sum`` their sum. A step takes the gradient
that leaves off the sum, and adds the new one. That alone would drift: each step rounds twice, and what a
large gradient has absorbed does not come back when it leaves. So the elements take turns at having the sum of
the others taken afresh from the ring, the oldest first: each once in as many steps as the window is long.
After two windows nothing is left of a gradient that has left, were it infinite or NaN. And with A, the
largest sum of magnitudes in a window of the last 2 w steps, and u = 2^-24 (2^-53 in float64), a sum of w
gradients is wrong by 3 w u A at most.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

TURN = 1024  # neighbours in memory order (of a process's shard) that have their turn in the same step


def have_turn(elements: int, place: int, window: int) -> Tensor:
    """Returns which of so many elements have their sums taken afresh in a step: their indices.

    Args:
        elements: n.
        place: That of the gradient that leaves, in the ring.
        window: The size of the ring.
    """
    return (torch.arange(elements) // TURN % window == place).nonzero()[:, 0]


def sum_of_others(sums: Tensor, planes: Sequence[Tensor], place: int) -> Tensor:
    """Returns what the gradients but the leaving one sum up to.

    Args:
        sums: [n], of all.
        planes: The ring: w times [n], in their own dtype.
        place: That of the leaving one.
    """
    turn = have_turn(len(sums), place, len(planes))
    found = sums - planes[place].to(sums.dtype)
    afresh = torch.zeros_like(found[turn])
    for plane in (*planes[place + 1 :], *planes[:place]):
        afresh = afresh + plane[turn].to(sums.dtype)
    found[turn] = afresh
    return found
