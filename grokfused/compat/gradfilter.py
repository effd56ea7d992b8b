"""The functions of the Grokfast authors' file: they amplify a model's gradients before any optimizer's step.

For code that is not ready to change its optimizer; ``GrokAdam`` and ``GrokAdamW`` do it inside their step.
"""

from __future__ import annotations

import numbers
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from grokfused.backends import windows
from grokfused.backends.reference import GRAD_FILTERS, Scalars, real_dtype
from grokfused.state.memory import refuse_windows_larger_than_what_is_free
from grokfused.step.options import check_flag
from grokfused.step.scalars import checked_number, scalar_table


@torch.no_grad()
def gradfilter_ema(
    m: nn.Module, grads: dict[str, Tensor] | None = None, alpha: float = 0.98, lamb: float = 2.0
) -> dict[str, Tensor]:
    """Amplifies the slow part of each gradient in place (Grokfast-EMA; Lee et al. 2024, arXiv:2405.20233).

    ::

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


@torch.no_grad()
def gradfilter_ma(
    m: nn.Module,
    grads: dict[str, dict[str, Any]] | None = None,
    window_size: int = 100,
    lamb: float = 5.0,
    filter_type: str = "mean",
    warmup: bool = True,
    trigger: bool = False,
) -> dict[str, dict[str, Any]]:
    """Amplifies the mean of the last gradients in place (Grokfast-MA; Lee et al. 2024, arXiv:2405.20233).

    ::

        h = mean of the last window_size g         with filter_type="sum" their sum
        g = g + lamb * h

    It is called as ``gradfilter_ema`` is, and what is said there holds. The bits are those of
    ``GrokAdamW(grad_filter="mean")`` where parameters are contiguous. A running sum is kept beside the
    window, which the authors' function sums again in each call.

    Args:
        m: The model. Its gradients are dense; ``p.grad`` stays the same tensor.
        grads: What the last call returned; None at the first. (default: None)
        window_size: How many gradients of each parameter are kept, the present one included. An integer >= 1,
            the same in all calls. (default: 100)
        lamb: How much of the mean is added. Any finite number. (default: 5.0)
        filter_type: "mean" or "sum". (default: "mean")
        warmup: True amplifies nothing before the window is full; False takes the mean of the gradients there
            are. (default: True)
        trigger: With ``warmup``, True amplifies nothing in this call, and only keeps its gradient. As in the
            authors' function it does nothing with warmup=False. (default: False)

    Returns:
        The memory of each parameter, by its name, on the device of its gradient: ``grad_window``
        ``[window_size, *shape]`` and ``grad_sum`` ``[shape]``, in float32 (float64 for such), and ``seen``,
        the number of its gradients so far. A complex one counts as pairs of real numbers. It is ``grads``
        itself, where that was given, written in place.

    Raises:
        TypeError, ValueError: An argument is out of range or does not fit; the message names it. Nothing was
            changed.
        RuntimeError: A gradient is sparse. Nothing was changed.
        MemoryError: The windows would not fit into the memory that is free. Nothing was changed.
    """
    _check_window(window_size, filter_type, warmup, trigger)
    checked_number("lamb", lamb, given=True)
    memory, gradients = _memory(grads), list(_gradients(m))
    for name, grad in gradients:
        if name in memory:
            _check_window_like(memory[name], _real(grad), window_size, name)
    _check_memory(window_size, [grad for name, grad in gradients if name not in memory])
    for name, grad in gradients:
        real = _real(grad).to(real_dtype(grad.dtype))
        if name not in memory:
            window = real.new_zeros(window_size, *real.shape)
            memory[name] = {"grad_window": window, "grad_sum": torch.zeros_like(real), "seen": 0}
        of = memory[name]
        planes = of["grad_window"].view(window_size, -1)
        place, seen = of["seen"] % window_size, of["seen"] + 1
        amplifies = not warmup or (seen >= window_size and not trigger)
        length = 1 if filter_type == "sum" else min(seen, window_size)
        values = {
            "grad": real.reshape(-1),
            "grad_sum": windows.sum_of_others(of["grad_sum"].reshape(-1), list(planes), place),
            "grad_window": planes[place],
        }
        new = GRAD_FILTERS["mean"](values, _scalars(0.0, lamb / length if amplifies else 0.0, real.dtype))
        planes[place].copy_(new["grad_window"])  # first: it may be the gradient's own memory
        _real(grad).copy_(new["grad"].view(real.shape))
        of["grad_sum"].copy_(new["grad_sum"].view(real.shape))
        of["seen"] = seen
    return memory


def _check_memory(window_size: int, grads: list[Tensor]) -> None:
    needed = Counter[torch.device]()
    for grad in grads:
        needed[grad.device] += window_size * _real(grad).numel() * real_dtype(grad.dtype).itemsize
    refuse_windows_larger_than_what_is_free(needed, "or gradfilter_ema")


def _check_window(window_size: object, filter_type: object, warmup: object, trigger: object) -> None:
    if isinstance(window_size, bool) or not isinstance(window_size, numbers.Integral):
        raise TypeError(f"window_size must be an integer >= 1, got {window_size!r}")
    if window_size < 1:
        raise ValueError(f"window_size must be an integer >= 1, got {window_size}")
    if filter_type not in ("mean", "sum"):
        raise ValueError(f"filter_type must be 'mean' or 'sum', got {filter_type!r}")
    check_flag("warmup", warmup)
    check_flag("trigger", trigger)


def _check_window_like(of: Any, grad: Tensor, window_size: int, name: str) -> None:
    if not isinstance(of, dict) or not {"grad_window", "grad_sum", "seen"} <= of.keys():
        raise TypeError(f"grads[{name!r}] must be what gradfilter_ma has returned, got {type(of).__name__}")
    if not (isinstance(of["grad_sum"], Tensor) and isinstance(of["grad_window"], Tensor)):
        raise TypeError(f"grads[{name!r}] must be what gradfilter_ma has returned: its arrays are no tensors")
    if of["grad_sum"].shape != grad.shape:
        shape = list(of["grad_sum"].shape)
        raise ValueError(f"grads[{name!r}] is for shape {shape}, the gradient has {list(grad.shape)}")
    if len(of["grad_window"]) != window_size:
        raise ValueError(
            f"grads[{name!r}] is a window of {len(of['grad_window'])}, and window_size is {window_size}: "
            "give None for grads to begin anew"
        )


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
    if not isinstance(m, nn.Module):
        raise TypeError(f"m must be a torch.nn.Module, got {type(m).__name__}")
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
