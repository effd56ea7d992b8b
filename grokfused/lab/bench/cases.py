"""What is measured on: lists of tensor shapes."""

from __future__ import annotations

import torch

Shapes = list[tuple[int, ...]]


def elements(shapes: Shapes) -> int:
    """Returns how many elements tensors of these shapes have together."""
    return sum(torch.Size(shape).numel() for shape in shapes)


def _block(dim: int) -> Shapes:
    """A Transformer block's two norms, its attention and its MLP, with biases."""
    attention: Shapes = [(3 * dim, dim), (3 * dim,), (dim, dim), (dim,)]
    mlp: Shapes = [(4 * dim, dim), (4 * dim,), (dim, 4 * dim), (dim,)]
    return [(dim,), (dim,), *attention, (dim,), (dim,), *mlp]


def demo() -> Shapes:
    """The demonstration's network: 29 tensors, 422,784 parameters."""
    dim = 128
    return [(99, dim), (5, dim), *_block(dim) * 2, (dim,), (dim,), (99, dim)]


def gpt_30m() -> Shapes:
    """A GPT's list of 37 tensors with 30.7 million parameters: an embedding and three blocks of width 768."""
    return [(12_288, 768), *_block(768) * 3]


def gpt2_small() -> Shapes:
    """GPT-2 small: 148 tensors, 124,439,808 parameters (the output layer is the embedding)."""
    return [(50_257, 768), (1024, 768), *_block(768) * 12, (768,), (768,)]


def resnet50() -> Shapes:
    """ResNet-50: 161 tensors, 25,557,032 parameters (He et al. 2015, arXiv:1512.03385, table 1)."""
    shapes: Shapes = []

    def convolution(out: int, into: int, size: int) -> None:
        shapes.extend([(out, into, size, size), (out,), (out,)])  # and its norm's weight and bias

    convolution(64, 3, 7)
    into = 64
    for blocks, width in ((3, 64), (4, 128), (6, 256), (3, 512)):
        for number in range(blocks):
            convolution(width, into, 1)
            convolution(width, width, 3)
            convolution(4 * width, width, 1)
            if number == 0:
                convolution(4 * width, into, 1)
            into = 4 * width
    return [*shapes, (1000, into), (1000,)]


CASES: dict[str, Shapes] = {
    "one of 64 M": [(64 * 2**20,)],
    "32 x 2048 x 2048": [(2048, 2048)] * 32,  # HeavyBall's
    "gpt-2 small": gpt2_small(),
    "gpt-30m": gpt_30m(),
    "resnet-50": resnet50(),
    "one of 1 M": [(10**6,)],
    "4 x 1 M": [(10**6,)] * 4,
    "10 x 1 M": [(10**6,)] * 10,  # PyTorch's for its fused CPU optimizers
    "5000 x 1000": [(1000,)] * 5000,
    "1000 x 1024": [(1024,)] * 1000,
    "demo": demo(),
}
# Curves: the cost of a parameter, in one tensor; the cost of a tensor, at a constant number of parameters.
PARAMETERS: dict[str, Shapes] = {f"1e{power} parameters": [(10**power,)] for power in range(3, 9)}
TENSORS: dict[str, Shapes] = {
    f"2^20 in {count}": [(2**20 // count,)] * count for count in (1, 4, 16, 64, 256, 1024, 4096)
}
