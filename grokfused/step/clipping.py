"""What multiplies the gradients of a whole step, in the pass itself: a loss scale, clipping, or both.

All of it are numbers of the device, which nobody here asks for: the host does not wait. It must not know how
a gradient is read.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from grokfused.step.scalars import FLOAT32_MAX

Groups = Sequence[Mapping[str, Any]]
GradScale = Mapping[str, Tensor]  # the op's grad_scale and found_inf, those there are
# As torch.nn.utils.clip_grad_norm_ has it: a norm of 0 divides nothing.
EPS = 1e-6
PIECE = 2**19  # elements: 2 MB of float32, which the allocator keeps and a cache holds


def given_scale(optimizer: object) -> GradScale:
    """Returns what torch.amp.GradScaler has set for this step, checked."""
    given: dict[str, Tensor] = {}
    for name in ("grad_scale", "found_inf"):
        number = getattr(optimizer, name, None)
        if number is None:
            continue
        if not (isinstance(number, Tensor) and number.numel() == 1 and not number.is_complex()):
            raise TypeError(
                f"{name} must be a tensor of one number, as torch.amp.GradScaler sets it, got {number!r}"
            )
        given[name] = number
    return given


def check_max_norm(limit: object) -> None:
    """Raises ValueError or TypeError where a limit is neither None nor a number > 0."""
    text = "max_grad_norm must be None or a finite number > 0"
    if limit is None:
        return
    if isinstance(limit, bool) or not isinstance(limit, numbers.Real):
        raise TypeError(f"{text}, got {limit!r} of type {type(limit).__name__}")
    if not 0 < limit <= FLOAT32_MAX:  # type: ignore[operator]  # float() of a large integer would overflow
        raise ValueError(f"{text}, got {limit!r}")


def max_norm_of(groups: Groups) -> float | None:
    """Returns the one ``max_grad_norm`` of all groups.

    Raises:
        ValueError, TypeError: A limit is out of range, or the groups do not agree: there is one norm, that
            of all gradients.
    """
    for group in groups:
        if group["max_grad_norm"] is not None:
            break
    else:
        return None
    limits: list[float | None] = [group["max_grad_norm"] for group in groups]
    for limit in limits:
        check_max_norm(limit)
    if any(limit != limits[0] for limit in limits):
        raise ValueError(
            "max_grad_norm limits the norm of all gradients together, so it must be equal in all groups, "
            f"got {limits}: set it alike in every group, one that is being added included"
        )
    return limits[0] and float(limits[0])


@torch.no_grad()
def total_norm(grads: Sequence[Tensor]) -> Tensor:
    """Returns the Euclidean norm of all gradients together: [], on the device of the first.

    It is float32, or float64 if there is a gradient of that. Of float32 and float64 gradients it is that of
    ``torch.nn.utils.get_total_norm``, to the bit. 16-bit ones are summed in float32 here, where torch rounds
    the norm of each tensor to 16 bits (float16 ends at 65504). DTensors count whole, each mesh of processes
    by itself, other tensors as they are on this process.
    """
    kinds: dict[Any, list[Tensor]] = {}
    for grad in map(_as_real, grads):
        mesh = getattr(grad, "device_mesh", None)  # a DTensor's; no import of torch.distributed
        kind = (mesh,) if grad.dtype is torch.float32 else (mesh, grad.device, grad.dtype)
        kinds.setdefault(kind, []).append(grad)
    norms = [_whole(_norm(alike)) for alike in kinds.values()]
    if len(norms) == 1:
        return norms[0]
    total: Tensor = torch.linalg.vector_norm(torch.stack([norm.to(grads[0].device) for norm in norms]))
    return total


def _as_real(grad: Tensor) -> Tensor:
    return torch.view_as_real(grad.resolve_conj()) if grad.is_complex() else grad


def _norm(alike: list[Tensor]) -> Tensor:
    """Returns the norm of gradients of one dtype (and, of 16-bit ones, device)."""
    if alike[0].dtype in (torch.float32, torch.float64):
        return torch.nn.utils.get_total_norm(alike)
    pieces = [piece for grad in alike for piece in _pieces(grad)]
    if hasattr(alike[0], "device_mesh"):  # torch 2.14 takes the dtype of a norm of several for a dimension
        each = [torch.linalg.vector_norm(piece, dtype=torch.float32) for piece in pieces]
    else:
        each = list(torch._foreach_norm(pieces, 2.0, dtype=torch.float32))
    norm: Tensor = torch.linalg.vector_norm(torch.stack(each))
    return norm


def _pieces(grad: Tensor) -> Sequence[Tensor]:
    """Returns a 16-bit gradient in parts: to sum one in float32, torch converts it, on a CPU in memory."""
    spread = hasattr(grad, "device_mesh")  # a DTensor, of which a part may be another process's
    if spread or grad.device.type != "cpu" or grad.numel() <= PIECE or not grad.is_contiguous():
        return [grad]
    pieces: Sequence[Tensor] = grad.view(-1).split(PIECE)
    return pieces


def _whole(norm: Tensor) -> Tensor:
    """Returns the norm over all processes where the gradients are DTensors, of which each has a part."""
    full: Callable[[], Tensor] | None = getattr(norm, "full_tensor", None)
    return norm if full is None else full()


class Clip(NamedTuple):
    """How the gradients of a step are clipped.

    Attributes:
        norm: That of all of them, still multiplied by a loss scale if there is one: ``total_norm``.
        max_norm: What it is brought down to, in true units.
    """

    norm: Tensor
    max_norm: float


@torch.no_grad()
def divisor(clip: Clip, loss_scale: Tensor | None) -> Tensor:
    """Returns what divides gradients, multiplied by ``loss_scale``, to clip them: [], of the norm's dtype.

    The coefficient is that of ``torch.nn.utils.clip_grad_norm_``, min(1, max_norm / (norm + 1e-6)). A norm
    that is NaN makes it NaN, an infinite one 0. Native code has the formula too, for what it derives on the
    device (csrc/step/scalars.h).
    """
    norm, scale = clip.norm, 1.0 if loss_scale is None else loss_scale.to(clip.norm).reshape(())
    if loss_scale is not None:
        norm = norm / scale
    coefficient: Tensor = (clip.max_norm / (norm + EPS)).clamp(max=1.0)
    return scale / coefficient
