"""The norm of all gradients of a step, wherever they lie. It must not know what it is for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from grokfused.backends import native_table, norm
from grokfused.state.storage import is_dense


@torch.no_grad()
def total_norm(grads: Sequence[Tensor]) -> Tensor:
    """Returns the Euclidean norm of all gradients together: [], on the device of the first.

    It is float32, or float64 if there is a gradient of that. On a CPU squares are summed in float64, in an
    order that nothing changes: ``backends.norm``. On other devices, and of subclasses such as DTensor, torch
    sums them in its order, those of 16 bits in float32. (``torch.nn.utils.get_total_norm`` rounds the norm of
    each tensor to 16 bits, of which float16 ends at 65504.) DTensors count whole, each mesh of processes by
    itself, other tensors as they are on this process.
    """
    table = native_table()
    found = table.sum_of_squares(grads) if table else None
    if found is not None:
        return _root(*found)
    plain = [_in_memory_order(grad) for grad in grads if _is_plain(grad)]
    norms = [_norm_on_cpu(plain)] if plain else []
    norms += _by_torch([_as_real(grad) for grad in grads if not _is_plain(grad)])
    if len(norms) == 1:
        return norms[0]
    total: Tensor = torch.linalg.vector_norm(torch.stack([norm.to(grads[0].device) for norm in norms]))
    return total


def _norm_on_cpu(grads: list[Tensor]) -> Tensor:
    table = native_table()
    found = table.sum_of_squares(grads) if table else None
    if found is None:
        found = norm.sum_of_squares(grads), any(grad.dtype is torch.float64 for grad in grads)
    return _root(*found)


def _root(squares: float, wide: bool) -> Tensor:
    return torch.tensor(squares**0.5, dtype=torch.float64 if wide else torch.float32, device="cpu")


def _is_plain(grad: Tensor) -> bool:
    """True for what has memory of its own on the CPU; what a subclass has is for torch to know."""
    return type(grad) in (Tensor, Parameter) and grad.device.type == "cpu" and grad.layout is torch.strided


def _as_real(grad: Tensor) -> Tensor:
    return torch.view_as_real(grad.resolve_conj()) if grad.is_complex() else grad


def _in_memory_order(grad: Tensor) -> Tensor:
    """Returns the elements of a gradient as they lie in memory, or copied where it has gaps: [n]."""
    grad = _as_real(grad.resolve_neg())
    return grad.as_strided((grad.numel(),), (1,)) if is_dense(grad) else grad.contiguous().view(-1)


def _by_torch(grads: list[Tensor]) -> list[Tensor]:
    """Returns the norms of gradients that are alike in what torch can sum at once."""
    kinds: dict[Any, list[Tensor]] = {}
    for grad in grads:
        mesh = getattr(grad, "device_mesh", None)  # a DTensor's; no import of torch.distributed
        kind = (mesh,) if grad.dtype is torch.float32 else (mesh, grad.device, grad.dtype)
        kinds.setdefault(kind, []).append(grad)
    return [_whole(_norm(alike)) for alike in kinds.values()]


def _norm(alike: list[Tensor]) -> Tensor:
    """Returns the norm of gradients of one dtype (and, of 16-bit ones, device)."""
    if alike[0].dtype in (torch.float32, torch.float64):
        return torch.nn.utils.get_total_norm(alike)
    if hasattr(alike[0], "device_mesh"):  # torch 2.14 takes the dtype of a norm of several for a dimension
        each = [torch.linalg.vector_norm(grad, dtype=torch.float32) for grad in alike]
    else:
        each = list(torch._foreach_norm(alike, 2.0, dtype=torch.float32))
    norm: Tensor = torch.linalg.vector_norm(torch.stack(each))
    return norm


def _whole(norm: Tensor) -> Tensor:
    """Returns the norm over all processes where the gradients are DTensors, of which each has a part."""
    full: Callable[[], Tensor] | None = getattr(norm, "full_tensor", None)
    return norm if full is None else full()
