"""Who is measured: each contender owns its parameters and gradients and offers one step."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from bench.cases import Shapes, bytes_per_element
from grokfused import GrokAdamW

ALPHA, LAMB = 0.98, 2.0
F32, BF16 = torch.float32, torch.bfloat16


class Contender(NamedTuple):
    """``step`` does the work once; ``bytes_per_element`` is what that work must move at least."""

    name: str
    step: Callable[[], object]
    bytes_per_element: int


def parameters(shapes: Shapes) -> list[Tensor]:
    """Returns float32 parameters with gradients."""
    random = torch.Generator().manual_seed(0)
    params = [torch.randn(shape, generator=random).requires_grad_() for shape in shapes]
    for param in params:
        param.grad = torch.randn(param.shape, generator=random)
    return params


def fused_adamw(params: list[Tensor]) -> torch.optim.AdamW:
    """Returns torch's own fused AdamW."""
    return torch.optim.AdamW(params, fused=True)


def foreach_grokfast(params: list[Tensor]) -> Callable[[], None]:
    """Grokfast-EMA with torch's multi-tensor operations, then the fused AdamW."""
    optimizer = fused_adamw(params)
    grads = [param.grad for param in params if param.grad is not None]
    emas = [grad.clone() for grad in grads]

    def step() -> None:
        torch._foreach_lerp_(emas, grads, 1 - ALPHA)
        torch._foreach_add_(grads, emas, alpha=LAMB)
        optimizer.step()

    return step


def python_grokfast(params: list[Tensor]) -> Callable[[], None]:
    """Grokfast-EMA as the paper's algorithm 2 reads, one tensor after the other, then the fused AdamW."""
    optimizer = fused_adamw(params)
    emas = [param.grad.clone() for param in params if param.grad is not None]

    def step() -> None:
        for number, param in enumerate(params):
            assert param.grad is not None
            emas[number] = ALPHA * emas[number] + (1 - ALPHA) * param.grad
            param.grad = param.grad + LAMB * emas[number]
        optimizer.step()

    return step


def copy(shapes: Shapes) -> Callable[[], object]:
    """One ``copy_`` of a float32 tensor as long as all parameters together."""
    count = sum(torch.Size(shape).numel() for shape in shapes)
    source, target = torch.ones(count), torch.zeros(count)
    return lambda: target.copy_(source)


def restoring_grads(params: list[Tensor]) -> Callable[[], object]:
    """Returns a reset: contenders that amplify ``p.grad`` in place would soon overflow."""
    kept = [param.grad.clone() for param in params if param.grad is not None]

    def reset() -> None:
        for param, grad in zip(params, kept, strict=True):
            param.grad.copy_(grad)  # type: ignore[union-attr]

    return reset


def contenders(shapes: Shapes) -> tuple[list[Contender], list[Callable[[], object]]]:
    """Returns the contenders on a list of shapes, and what to call between two rounds."""
    fused, foreach, python = parameters(shapes), parameters(shapes), parameters(shapes)
    ours = {
        "GrokAdamW": (GrokAdamW(parameters(shapes), fused=True), bytes_per_element(F32, F32, 3)),
        "GrokAdamW, bfloat16 states": (
            GrokAdamW(parameters(shapes), state_dtype=BF16),
            bytes_per_element(F32, BF16, 3),
        ),
        "GrokAdamW, bfloat16 states, nearest": (
            GrokAdamW(parameters(shapes), state_dtype=BF16, state_rounding="nearest"),
            bytes_per_element(F32, BF16, 3),
        ),
    }
    found = [Contender(name, optimizer.step, size) for name, (optimizer, size) in ours.items()]
    grokfast = bytes_per_element(F32, F32, 3)
    found += [
        Contender("AdamW(fused)", fused_adamw(fused).step, bytes_per_element(F32, F32, 2)),
        Contender("foreach EMA + AdamW(fused)", foreach_grokfast(foreach), grokfast),
        Contender("Python Grokfast + AdamW(fused)", python_grokfast(python), grokfast),
        Contender("copy_", copy(shapes), 2 * F32.itemsize),
    ]
    return found, [restoring_grads(foreach), restoring_grads(python)]
