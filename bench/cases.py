"""What is measured on: lists of tensor shapes, and the bytes that a step of each policy must move."""

from __future__ import annotations

import torch

Shapes = list[tuple[int, ...]]


def demo() -> Shapes:
    """The demonstration's network: 29 tensors, 422,784 parameters."""
    dim = 128
    block: Shapes = [(dim,), (dim,), (3 * dim, dim), (3 * dim,), (dim, dim), (dim,), (dim,), (dim,)]
    block += [(4 * dim, dim), (4 * dim,), (dim, 4 * dim), (dim,)]
    return [(99, dim), (5, dim), *block, *block, (dim,), (dim,), (99, dim)]


def gpt_30m() -> Shapes:
    """A GPT's list of 37 tensors with 30.7 million parameters: an embedding and three blocks of width 768."""
    dim = 768
    block: Shapes = [(dim,), (dim,), (3 * dim, dim), (3 * dim,), (dim, dim), (dim,), (dim,), (dim,)]
    block += [(4 * dim, dim), (4 * dim,), (dim, 4 * dim), (dim,)]
    return [(12_288, dim), *block, *block, *block]


def gpt2_small() -> Shapes:
    """GPT-2 small: 148 tensors, 124,439,808 parameters (the output layer is the embedding)."""
    dim = 768
    block: Shapes = [(dim,), (dim,), (dim, 3 * dim), (3 * dim,), (dim, dim), (dim,), (dim,), (dim,)]
    block += [(dim, 4 * dim), (4 * dim,), (4 * dim, dim), (dim,)]
    return [(50_257, dim), (1024, dim), *block * 12, (dim,), (dim,)]


CPU_CASES: dict[str, Shapes] = {"gpt-30m": gpt_30m(), "demo": demo(), "1000 x 1024": [(1024,)] * 1000}
CUDA_CASES: dict[str, Shapes] = {
    "one of 64 M": [(64 * 2**20,)],
    "32 x 2048 x 2048": [(2048, 2048)] * 32,
    "gpt-2 small": gpt2_small(),
    "5000 x 1000": [(1000,)] * 5000,
    "demo": demo(),
}


def bytes_per_element(param: torch.dtype, state: torch.dtype, states: int, kahan: bool = False) -> int:
    """Returns what one step must read and write per element, in bytes.

    Args:
        param: dtype of parameter (read, written) and gradient (read).
        state: dtype of the states, each read and written.
        states: 2 for Adam's moments, 3 with the slow gradient.
        kahan: Whether parameters are rounded with Kahan's rest, read and written; float32 has none.
            (default: False)
    """
    rest = 2 * param.itemsize if kahan and param.itemsize == 2 else 0
    return 3 * param.itemsize + 2 * states * state.itemsize + rest
