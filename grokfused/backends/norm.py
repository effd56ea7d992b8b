"""The sum of the squares of gradients on a CPU: this file belongs to the truth.

Sums are of float64, in which the square of a narrower number is exact, so a norm is right to the last bit of
float32 or next to it, however many gradients there are. Their order is fixed: it depends on no number of
threads, and no vector's width (csrc/step/norm.h).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import pad

# A tensor is cut into pieces. Element i of a piece is added to lane i % LANES, one after the other; then the
# lanes are, and then the pieces, tensor by tensor.
PIECE, LANES = 4096, 32
AT_ONCE = 128 * PIECE  # as few as fit a cache, in float64


def sum_of_squares(grads: Sequence[Tensor]) -> float:
    """Returns what the squares of all elements sum up to.

    Args:
        grads: [n] each, of floating point, on the CPU, in the order in which their elements lie in memory.
    """
    total = 0.0
    for grad in grads:
        for part in grad.split(AT_ONCE):
            for piece in _of_pieces(part).tolist():
                total += piece
    return total


def _of_pieces(values: Tensor) -> Tensor:
    """[n] -> [pieces]. A cumulative sum adds one after the other, and zeros at the end add nothing."""
    squares = pad(values.double().square(), (0, -len(values) % PIECE))
    lanes = squares.view(-1, PIECE // LANES, LANES).cumsum(1)[:, -1]
    return lanes.cumsum(1)[:, -1]
