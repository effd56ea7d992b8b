"""What multiplies the gradients of a whole step, in the pass itself: a loss scale, clipping, or both.

All of it are numbers of the device, which nobody here asks for: the host does not wait. It must not know how
a gradient is read.
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from grokfused.step.scalars import FLOAT32_MAX

Groups = Sequence[Mapping[str, Any]]
GradScale = Mapping[str, Tensor]  # the op's grad_scale and found_inf, those there are
# As torch.nn.utils.clip_grad_norm_ has it: a norm of 0 divides nothing.
EPS = 1e-6


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


class Clip(NamedTuple):
    """How the gradients of a step are clipped.

    Attributes:
        norm: That of all of them, still multiplied by a loss scale if there is one (``norm.total_norm``).
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
