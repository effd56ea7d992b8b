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
    """``step`` does the work once; ``bytes_per_element`` is what that work must move at least.

    ``reset`` is called before each round: contenders that amplify ``p.grad`` in place would soon overflow.
    """

    name: str
    step: Callable[[], object]
    bytes_per_element: int
    reset: Callable[[], object] = lambda: None


class Place(NamedTuple):
    """Where and in which dtype the parameters are."""

    device: str = "cpu"
    dtype: torch.dtype = F32


ON_CPU = Place()


def parameters(shapes: Shapes, place: Place = ON_CPU) -> list[Tensor]:
    """Returns parameters with gradients, the same values each time."""
    device, dtype = place
    random = torch.Generator(device).manual_seed(0)
    params = [torch.randn(s, generator=random, dtype=dtype, device=device).requires_grad_() for s in shapes]
    for param in params:
        param.grad = torch.randn(param.shape, generator=random, dtype=dtype, device=device)
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


def foreach_masked(params: list[Tensor], masks: list[Tensor]) -> Callable[[], None]:
    """The usual way with masks: what they leave out is taken from gradients before, from weights after.

    The masks are float32, as ``torch.nn.utils.prune`` keeps them: nothing has to be converted in a step.
    """
    step_unmasked = foreach_grokfast(params)
    grads = [param.grad for param in params if param.grad is not None]
    factors = [mask.float() for mask in masks]

    def step() -> None:
        torch._foreach_mul_(grads, factors)
        step_unmasked()
        with torch.no_grad():
            torch._foreach_mul_(params, factors)

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


def copy(shapes: Shapes, device: str = "cpu") -> Callable[[], object]:
    """One ``copy_`` of a float32 tensor as long as all parameters together."""
    count = sum(torch.Size(shape).numel() for shape in shapes)
    source, target = torch.ones(count, device=device), torch.zeros(count, device=device)
    return lambda: target.copy_(source)


def restoring_grads(params: list[Tensor]) -> Callable[[], object]:
    """Returns a reset that gives the parameters the gradients they have now."""
    kept = [param.grad.clone() for param in params if param.grad is not None]

    def reset() -> None:
        for param, grad in zip(params, kept, strict=True):
            param.grad.copy_(grad)  # type: ignore[union-attr]

    return reset


def baselines(shapes: Shapes, place: Place = ON_CPU) -> list[Contender]:
    """Returns torch's fused AdamW, and Grokfast before it as one would write it with torch."""
    adamw, foreach, python = (parameters(shapes, place) for _ in range(3))
    plain, grokfast = (bytes_per_element(place.dtype, place.dtype, states) for states in (2, 3))
    return [
        Contender("AdamW(fused)", fused_adamw(adamw).step, plain),
        Contender(
            "foreach EMA + AdamW(fused)", foreach_grokfast(foreach), grokfast, restoring_grads(foreach)
        ),
        Contender(
            "Python Grokfast + AdamW(fused)", python_grokfast(python), grokfast, restoring_grads(python)
        ),
        Contender("copy_", copy(shapes, place.device), 2 * F32.itemsize),
    ]


def contender(name: str, shapes: Shapes, place: Place = ON_CPU, **options: object) -> Contender:
    """Returns a GrokAdamW with these options."""
    optimizer = GrokAdamW(parameters(shapes, place), alpha=ALPHA, lamb=LAMB, **options)
    state = options.get("state_dtype", F32)
    assert isinstance(state, torch.dtype)
    kahan = options.get("param_rounding") == "kahan"
    return Contender(name, optimizer.step, bytes_per_element(place.dtype, state, 3, kahan))
