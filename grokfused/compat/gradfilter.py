"""The functions of the Grokfast authors' file: they amplify a model's gradients before any optimizer's step.

For code that is not ready to change its optimizer; ``GrokAdam`` and ``GrokAdamW`` do it inside their step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from grokfused.backends.reference import GRAD_FILTERS, Scalars, real_dtype
from grokfused.step.scalars import checked_number, scalar_table


@torch.no_grad()
def gradfilter_ema(
    m: nn.Module, grads: dict[str, Tensor] | None = None, alpha: float = 0.98, lamb: float = 2.0
) -> dict[str, Tensor]:
    """Amplifies the slow part of each gradient in place (Grokfast-EMA; Lee et al. 2024, arXiv:2405.20233).

        h = alpha * h + (1 - alpha) * g            starts as the first g
        g = g + lamb * h

    ::

        loss.backward()
        grads = gradfilter_ema(model, grads)  # grads = None before the first call
        optimizer.step()

    Call it once a step, on gradients of that step alone and in true units: where they are not cleared the
    amplified ones come in again. The bits are those of ``GrokAdamW(grad_filter="ema")``. A parameter that
    gets its first gradient later starts then (the authors' function raises KeyError); one without a gradient,
    or frozen, is left alone.

    Args:
        m: The model. Its gradients are dense; ``p.grad`` stays the same tensor.
        grads: What the last call returned; None at the first. (default: None)
        alpha: Memory of the slow gradient. In [0, 1). (default: 0.98)
        lamb: How much of it is added. Any finite number. (default: 2.0)

    Returns:
        The slow gradient of each parameter, by its name: of its shape, on its device, in float32 (float64 and
        complex for such), in memory of its own. It is ``grads`` itself, where that was given, with new
        tensors in it.

    Raises:
        TypeError, ValueError: ``alpha``, ``lamb`` or ``grads`` is out of range or does not fit; the message
            names it. Nothing was changed.
        RuntimeError: A gradient is sparse. Nothing was changed.
    """
    scalars = {dtype: _scalars(alpha, lamb, dtype) for dtype in (torch.float32, torch.float64)}
    first = {dtype: _scalars(0.0, lamb, dtype) for dtype in scalars}  # 0 * h + 1 * g
    memory, gradients = _memory(grads), list(_gradients(m))
    for name, grad in gradients:
        if name in memory:
            _check_like(memory[name], grad, name)
    for name, grad in gradients:
        dtype = real_dtype(grad.dtype)
        values = {"grad": _real(grad).to(dtype)}
        known = name in memory
        values["grad_ema"] = (
            _real(memory[name]).to(values["grad"]) if known else torch.zeros_like(values["grad"])
        )
        new = GRAD_FILTERS["ema"](values, (scalars if known else first)[dtype])
        _real(grad).copy_(new["grad"])
        memory[name] = torch.view_as_complex(new["grad_ema"]) if grad.is_complex() else new["grad_ema"]
    return memory


def _scalars(alpha: float, lamb: float, dtype: torch.dtype) -> Scalars:
    """Returns the numbers of a filter as a step has them: those of the rest are 0, and all rounded once."""
    alpha, lamb = checked_number("alpha", alpha, given=True), checked_number("lamb", lamb, given=True)
    row = Scalars(*[0.0] * len(Scalars._fields))
    row = row._replace(alpha=alpha, alpha_weight=1.0 - alpha, lamb=lamb)
    return Scalars(*scalar_table([row], dtype)[0].tolist())


def _memory(grads: Any) -> dict[str, Any]:
    if grads is not None and not isinstance(grads, dict):
        raise TypeError(f"grads must be None or what the last call returned, got {type(grads).__name__}")
    return {} if grads is None else grads


def _gradients(m: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields the name and gradient of each parameter that has one."""
    for name, param in m.named_parameters():
        grad = param.grad
        if param.requires_grad and grad is not None:
            if grad.layout is not torch.strided:
                raise RuntimeError(f"the gradient of {name!r} has layout {grad.layout}: it must be dense")
            yield name, grad


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _check_like(before: object, grad: Tensor, name: str) -> None:
    if not isinstance(before, Tensor):
        raise TypeError(f"grads[{name!r}] must be a tensor, got {type(before).__name__}")
    if before.shape != grad.shape or before.is_complex() != grad.is_complex():
        raise ValueError(
            f"grads[{name!r}] has shape {list(before.shape)}, the gradient {list(grad.shape)}: "
            "it is of another model"
        )
